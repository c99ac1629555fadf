use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const DRAWS: u64 = 4000;

fn params(temperature: f32) -> SamplingParams {
    SamplingParams {
        temperature,
        seed: 42,
        ..SamplingParams::default()
    }
}

fn draw(logits: &[f32], params: &SamplingParams, position: u64) -> u32 {
    sample(logits, params, position)
        .expect("fine logits and parameters")
        .token
}

/// How often each token is drawn over many positions.
fn counts(logits: &[f32], params: &SamplingParams) -> BTreeMap<u32, u64> {
    let mut counts = BTreeMap::new();
    for position in 0..DRAWS {
        *counts.entry(draw(logits, params, position)).or_default() += 1;
    }
    counts
}

fn support(logits: &[f32], params: &SamplingParams) -> Vec<u32> {
    counts(logits, params).into_keys().collect()
}

/// Logits of given probabilities.
fn logits_of(probabilities: &[f64]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln() as f32).collect()
}

#[test]
fn greedy_takes_the_highest_and_of_equals_the_lowest() {
    for (logits, expected) in [
        (vec![0.0, 3.0, 1.0, 3.0], 1),
        (vec![-0.0, 0.0], 0),
        (vec![f32::NEG_INFINITY, -5.0], 1),
    ] {
        assert_eq!(draw(&logits, &params(0.0), 9), expected);
    }
}

#[test]
fn draws_follow_the_distribution() {
    let probabilities = [0.5, 0.3, 0.15, 0.05];
    let counts = counts(&logits_of(&probabilities), &params(1.0));
    for (token, p) in (0u32..).zip(probabilities) {
        let share = counts[&token] as f64 / DRAWS as f64;
        // Four standard deviations.
        let tolerance = 4.0 * (p * (1.0 - p) / DRAWS as f64).sqrt();
        assert!((share - p).abs() < tolerance, "{token}: {share} for {p}");
    }
}

#[test]
fn a_temperature_shapes_the_distribution() {
    let logits = logits_of(&[0.8, 0.2]);
    let share = |temperature| counts(&logits, &params(temperature))[&0] as f64 / DRAWS as f64;
    // p ^ (1 / T), normalised.
    assert!((share(0.5) - 0.941).abs() < 0.02);
    assert!((share(2.0) - 0.667).abs() < 0.03);
}

#[test]
fn each_truncation_keeps_what_it_says() {
    let logits = logits_of(&[0.1, 0.4, 0.2, 0.25, 0.05]);
    let all = params(1.0);
    let cases = [
        (SamplingParams { top_k: 2, ..all }, vec![1, 3]),
        (SamplingParams { top_k: 99, ..all }, vec![0, 1, 2, 3, 4]),
        (SamplingParams { top_p: 0.6, ..all }, vec![1, 3]),
        (SamplingParams { top_p: 0.7, ..all }, vec![1, 2, 3]),
        (SamplingParams { top_p: 1e-6, ..all }, vec![1]),
        (SamplingParams { min_p: 0.45, ..all }, vec![1, 2, 3]),
        (SamplingParams { min_p: 1.0, ..all }, vec![1]),
        // Top-p counts within what top-k left: 0.4 / 0.65 is more than 0.6.
        (
            SamplingParams {
                top_k: 2,
                top_p: 0.6,
                ..all
            },
            vec![1],
        ),
        // The temperature comes last: it does not change what is kept.
        (
            SamplingParams {
                min_p: 0.45,
                temperature: 50.0,
                ..all
            },
            vec![1, 2, 3],
        ),
    ];
    for (params, expected) in cases {
        assert_eq!(support(&logits, &params), expected, "{params:?}");
    }
}

#[test]
fn log_probabilities_are_of_the_unmodified_distribution() {
    let logits = logits_of(&[0.1, 0.6, 0.3]);
    let sharp = SamplingParams {
        top_k: 1,
        top_logprobs: 2,
        ..params(0.3)
    };
    let drawn = sample(&logits, &sharp, 0).expect("fine logits");
    assert_eq!(drawn.token, 1);
    assert!((f64::from(drawn.logprob) - 0.6f64.ln()).abs() < 1e-6);
    let tokens: Vec<u32> = drawn.top.iter().map(|top| top.0).collect();
    assert_eq!(tokens, [1, 2]);
    assert!((f64::from(drawn.top[1].1) - 0.3f64.ln()).abs() < 1e-6);
}

#[test]
fn logits_of_any_size_and_mixture_are_drawn_from() {
    let extreme = [f32::MAX, f32::MIN, f32::NEG_INFINITY, f32::MAX];
    assert_eq!(support(&extreme, &params(100.0)), [0, 3]);
    assert_eq!(draw(&[7.0], &params(1.0), 0), 0);
    let flat = vec![0.0; 5000];
    let tokens = support(&flat, &params(1.0));
    assert!(tokens.last() > Some(&4900), "the far end is drawn, too");
}

#[test]
fn broken_logits_are_an_error() {
    let all = params(1.0);
    for bad in [f32::NAN, f32::INFINITY] {
        let error = sample(&[0.0, bad], &all, 0).expect_err("a broken logit");
        assert!(matches!(error, SampleError::BadLogit { token: 1, .. }));
    }
    assert_eq!(sample(&[], &all, 0), Err(SampleError::NoLogits));
    assert!(sample(&[f32::NEG_INFINITY; 3], &all, 0).is_err());
}

#[test]
fn parameters_out_of_range_are_an_error_that_names_them() {
    let all = params(1.0);
    let cases = [
        (
            "temperature",
            SamplingParams {
                temperature: -0.1,
                ..all
            },
        ),
        (
            "temperature",
            SamplingParams {
                temperature: f32::NAN,
                ..all
            },
        ),
        (
            "temperature",
            SamplingParams {
                temperature: f32::INFINITY,
                ..all
            },
        ),
        ("top_p", SamplingParams { top_p: 0.0, ..all }),
        ("top_p", SamplingParams { top_p: 1.1, ..all }),
        (
            "top_p",
            SamplingParams {
                top_p: f32::NAN,
                ..all
            },
        ),
        ("min_p", SamplingParams { min_p: 1.5, ..all }),
        (
            "top_logprobs",
            SamplingParams {
                top_logprobs: 21,
                ..all
            },
        ),
    ];
    for (expected, params) in cases {
        let error = sample(&[0.0], &params, 0).expect_err(expected);
        let SampleError::OutOfRange { name, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(name, expected);
    }
}

#[test]
fn parameters_survive_json_and_default_to_greedy() {
    let params: SamplingParams = serde_json::from_str("{\"top_k\": 5}").expect("valid");
    assert_eq!(
        params,
        SamplingParams {
            top_k: 5,
            ..SamplingParams::default()
        }
    );
    assert!(serde_json::from_str::<SamplingParams>("{\"topk\": 5}").is_err());
}

fn any_params() -> impl Strategy<Value = SamplingParams> {
    let shares = (0.01f32..=1.0, 0.0f32..=1.0);
    (0.0f32..3.0, shares, 0u32..300, any::<u64>()).prop_map(
        |(temperature, (top_p, min_p), top_k, seed)| SamplingParams {
            temperature,
            top_p,
            top_k,
            min_p,
            seed,
            top_logprobs: 3,
        },
    )
}

proptest! {
    #[test]
    fn a_token_is_a_function_of_seed_and_position_whatever_came_before(
        logits in prop::collection::vec(-20.0f32..20.0, 1..600),
        params in any_params(),
        positions in prop::collection::vec(0u64..1000, 1..10),
    ) {
        let forwards: Vec<_> = positions.iter().map(|p| sample(&logits, &params, *p)).collect();
        let mut backwards: Vec<_> =
            positions.iter().rev().map(|p| sample(&logits, &params, *p)).collect();
        backwards.reverse();
        prop_assert_eq!(forwards, backwards);
    }

    #[test]
    fn a_drawn_token_is_among_those_that_every_truncation_keeps(
        logits in prop::collection::vec(-20.0f32..20.0, 1..600),
        params in any_params(),
        position in any::<u64>(),
    ) {
        let drawn = sample(&logits, &params, position).expect("fine logits and parameters");
        let logit = logits[drawn.token as usize];
        let higher = logits.iter().filter(|other| **other > logit).count();
        prop_assert!(params.top_k == 0 || higher < params.top_k as usize);
        let highest = logits.iter().copied().fold(f32::MIN, f32::max);
        prop_assert!(f64::from(logit - highest).exp() >= f64::from(params.min_p) - 1e-5
            || logit == highest);
        prop_assert!(drawn.logprob <= 0.0);
        prop_assert!(drawn.top.is_sorted_by(|a, b| a.1 >= b.1));
    }

    #[test]
    fn ranks_are_a_full_sort_however_far_one_looks(
        logits in prop::collection::vec(prop::sample::select(vec![-1.0f32, 0.0, 0.5, 2.0]), 1..900),
        steps in prop::collection::vec(0usize..900, 0..4),
    ) {
        let mut ranked = Ranked::new(&logits);
        for step in steps {
            ranked.get(step);
        }
        let order: Vec<u32> = (0..logits.len()).map(|rank| ranked.get(rank).unwrap().0).collect();
        let mut sorted: Vec<u32> = (0..logits.len() as u32).collect();
        sorted.sort_by(|a, b| {
            logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b))
        });
        prop_assert_eq!(order, sorted);
    }
}
