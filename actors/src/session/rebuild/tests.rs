use proptest::prelude::*;

use super::*;

/// A stage of ten layers that takes 0.1 ms for each layer and position, with so much cached.
fn stage(cached: u64) -> Holding {
    Holding {
        layers: 10,
        cached,
        outputs: cached,
        prefill_ns: 1_000_000,
        bytes_s: 1_000_000_000,
    }
}

fn situation(stages: Vec<Holding>, total: u64) -> Situation {
    Situation {
        stages,
        donors: Vec::new(),
        total,
        row_bytes: 2_000,
        kv_bytes: 800,
    }
}

fn feed(source: Source, until: usize, from: u64, to: u64) -> Option<Feed> {
    Some(Feed {
        source,
        until,
        from,
        to,
    })
}

fn without_outputs(mut stage: Holding) -> Holding {
    stage.outputs = 0;
    stage
}

#[test]
fn a_stage_in_the_middle_is_fed_by_the_one_before_it_and_the_others_keep_theirs() {
    let choice = choose(
        &situation(vec![stage(500), stage(0), stage(498)], 501),
        None,
    );
    assert_eq!(choice.way, "replay");
    assert_eq!(choice.plan.lengths, [498, 0, 498]);
    assert_eq!(choice.plan.feed, feed(Source::Outputs(0), 1, 0, 498));
    assert_eq!(choice.plan.begin, 498);
    let ways: Vec<&str> = choice.prices.iter().map(|(way, _)| *way).collect();
    assert_eq!(ways, ["replay", "prefill"]);
}

#[test]
fn without_outputs_or_a_stage_before_the_tokens_go_no_further_than_they_must() {
    let stages = vec![without_outputs(stage(500)), stage(0), stage(500)];
    let choice = choose(&situation(stages, 501), None);
    assert_eq!(choice.way, "prefill");
    assert_eq!(choice.plan.lengths, [0, 0, 500]);
    assert_eq!(choice.plan.feed, feed(Source::Tokens, 1, 0, 500));

    let choice = choose(
        &situation(vec![stage(0), stage(500), stage(500)], 501),
        None,
    );
    assert_eq!(choice.way, "prefill");
    assert_eq!(choice.plan.lengths, [0, 500, 500]);
    assert_eq!(choice.plan.feed, feed(Source::Tokens, 0, 0, 500));
}

#[test]
fn a_last_stage_that_nobody_can_feed_takes_everything_from_the_start() {
    let stages = vec![stage(500), without_outputs(stage(500)), stage(0)];
    // The first could feed both others; here that is the cheapest, and with no outputs at all
    // nothing but the tokens is left.
    let choice = choose(&situation(stages.clone(), 501), None);
    assert_eq!(choice.plan.feed, feed(Source::Outputs(0), 2, 0, 500));
    let stages = stages.into_iter().map(without_outputs).collect();
    let choice = choose(&situation(stages, 501), None);
    assert_eq!((choice.way, choice.plan.begin), ("prefill", 0));
    assert_eq!(choice.plan.feed, None);
    assert_eq!(choice.plan.lengths, [0; 3]);
}

#[test]
fn what_all_stages_have_is_gone_on_with_and_an_unfinished_rebuild_too() {
    let choice = choose(&situation(vec![stage(500), stage(499)], 501), None);
    assert_eq!((choice.way, choice.plan.begin), ("keep", 499));
    assert_eq!(choice.plan.lengths, [499, 499]);
    let choice = choose(&situation(vec![stage(500), stage(300)], 501), None);
    assert_eq!(choice.way, "replay");
    assert_eq!(choice.plan.feed, feed(Source::Outputs(0), 1, 300, 500));
}

/// The price of a way, in a choice.
fn price(choice: &Choice, way: &str) -> Duration {
    let mut prices = choice.prices.iter();
    let found = prices.find(|(name, _)| *name == way);
    found.expect("it is possible").1
}

#[test]
fn each_way_is_the_cheapest_somewhere() {
    let give = |holding: Holding| Donor {
        number: 3,
        stage: 1,
        holding,
    };
    let mut lost = situation(vec![stage(500), stage(0), stage(500)], 501);
    lost.donors = vec![give(stage(500))];
    assert_eq!(choose(&lost, None).way, "copy", "nobody computes");
    lost.kv_bytes = 1_000_000;
    assert_eq!(choose(&lost, None).way, "replay", "the cache is large");
    for stage in &mut lost.stages {
        stage.outputs = 0;
    }
    assert_eq!(choose(&lost, None).way, "prefill");
    lost.stages[1] = stage(498);
    assert_eq!(choose(&lost, None).way, "keep", "little is missing");
}

#[test]
fn a_copy_is_as_cheap_as_its_link_is_wide_and_goes_as_far_as_its_donor() {
    let donor = |cached| Donor {
        number: 2,
        stage: 1,
        holding: stage(cached),
    };
    let mut lost = situation(vec![stage(500), stage(0)], 501);
    lost.donors = vec![donor(0)];
    assert_eq!(choose(&lost, named("copy")).way, "replay");
    lost.donors = vec![donor(498)];
    let behind = choose(&lost, named("copy"));
    assert_eq!(behind.plan.lengths, [498, 0], "the other one goes back");
    assert_eq!(behind.plan.feed, feed(Source::Cache(2), 1, 0, 498));
    assert_eq!(behind.plan.begin, 498);
    lost.donors = vec![donor(500)];
    let wide = choose(&lost, named("copy"));
    assert_eq!(wide.plan.feed, feed(Source::Cache(2), 1, 0, 500));
    lost.donors[0].holding.bytes_s = 1_000_000;
    let narrow = choose(&lost, named("copy"));
    assert!(price(&wide, "copy") * 10 < price(&narrow, "copy"));
    assert_eq!(price(&wide, "replay"), price(&narrow, "replay"));
    lost.kv_bytes = 0;
    assert_eq!(choose(&lost, named("copy")).way, "replay", "unknown rows");
}

#[test]
fn a_way_that_is_asked_for_is_taken_where_it_is_possible() {
    let can = situation(vec![stage(500), stage(0), stage(500)], 501);
    assert_eq!(choose(&can, named("prefill")).way, "prefill");
    let cannot = situation(vec![stage(0), stage(0)], 501);
    assert_eq!(choose(&cannot, named("replay")).way, "prefill");
    assert!(named("magic").is_none());
}

#[test]
fn what_was_not_measured_is_taken_from_the_others() {
    let mut stages = vec![stage(500), stage(0)];
    stages[1].prefill_ns = 0;
    let measured = choose(&situation(vec![stage(500), stage(0)], 501), None);
    let guessed = choose(&situation(stages, 501), None);
    assert_eq!(measured, guessed);
}

fn any_stage() -> impl Strategy<Value = Holding> {
    let amount = || prop_oneof![Just(0), 0..600u64, any::<u64>()];
    let report = (amount(), amount(), any::<u64>(), any::<u64>());
    (report, 1..100u32).prop_map(|((cached, outputs, prefill_ns, plane_bytes_s), layers)| {
        let report = StageReport {
            cached,
            outputs,
            prefill_ns,
            plane_bytes_s,
            ..StageReport::default()
        };
        Holding::of(report, layers, 400)
    })
}

/// Follows a plan: every stage must end up with every position, in order.
fn follow(situation: &Situation, plan: &Plan) {
    let mut lengths = plan.lengths.clone();
    assert_eq!(lengths.len(), situation.stages.len());
    for (length, stage) in lengths.iter().zip(&situation.stages) {
        assert!(*length <= stage.cached, "nobody has that much");
    }
    if let Some(feed) = plan.feed {
        let first = match feed.source {
            Source::Cache(number) => {
                let mut donors = situation.donors.iter();
                let donor = donors.find(|donor| donor.number == number);
                let donor = donor.expect("there is such a donor");
                assert!(donor.holding.cached >= feed.to);
                assert_eq!(donor.stage, feed.until, "it has other layers");
                feed.until
            }
            Source::Tokens => 0,
            Source::Outputs(stage) => {
                assert!(situation.stages[stage].outputs >= feed.to);
                assert!(lengths[stage] >= feed.to, "its outputs are cut off");
                stage + 1
            }
        };
        assert!(feed.from < feed.to, "nothing to feed");
        for length in &mut lengths[first..=feed.until] {
            assert_eq!(*length, feed.from, "a gap, or twice");
            *length = feed.to;
        }
    }
    assert!(lengths.iter().all(|length| *length == plan.begin));
    assert!(
        plan.begin < situation.total,
        "the last position is computed"
    );
}

proptest! {
    #[test]
    fn whatever_stages_report_the_plan_gives_each_every_position_once_at_the_least_price(
        stages in proptest::collection::vec(any_stage(), 1..8),
        donors in proptest::collection::vec((any_stage(), any::<prop::sample::Index>()), 0..4),
        sizes in any::<(u64, u64)>(),
    ) {
        let donors = donors.into_iter().enumerate().map(|(index, (holding, stage))| Donor {
            number: stages.len() + index,
            stage: stage.index(stages.len()),
            holding,
        });
        let situation = Situation {
            donors: donors.collect(),
            stages,
            total: 400,
            row_bytes: sizes.0,
            kv_bytes: sizes.1,
        };
        let cheapest = choose(&situation, None);
        follow(&situation, &cheapest.plan);
        let least = cheapest.prices.iter().min_by_key(|(_, price)| *price);
        let least = least.expect("prefill is always possible").1;
        let own = cheapest.prices.iter().find(|(way, _)| *way == cheapest.way);
        prop_assert_eq!(own.expect("it is priced").1, least);
        for way in WAYS {
            follow(&situation, &choose(&situation, Some(way)).plan);
        }
    }
}
