//! Stages of a witnessed session: what they sign, what they refuse, and what comes of computing it
//! again.

use accel_p2p::wire::{Claim, SignedClaim};

use super::*;
use crate::account::{Chain, witness_of};
use crate::evidence::{Evidence, Verdict};
use crate::stage::{BOUNDARY_DISPUTED, are_theirs, recompute};

const NONCE: [u8; 32] = [3; 32];

impl Bench {
    /// Prepares, witnesses and commits a route.
    async fn witness(&self, session: SessionId, stages: &[(&TestNode, LayerRange)]) {
        self.ready(session, 1, stages).await;
        let route = stages.iter().map(|(node, layers)| (node.peer, *layers));
        let route: Vec<_> = route.collect();
        for (node, _) in stages {
            let witness = ControlRequest::Witness {
                session,
                epoch: 1,
                nonce: NONCE,
            };
            for request in [witness, self.commit(session, 1, &route)] {
                let done = node.control(self.coordinator, request).await;
                assert_eq!(done, Ok(ControlReply::Done));
            }
        }
    }

    /// The claims that come with the next token.
    async fn claims(&mut self) -> (TensorFrame, Vec<SignedClaim>) {
        match self.frame().await {
            TensorFrame::Claimed { frame, claims } => (*frame, claims),
            other => panic!("{other:?}"),
        }
    }

    fn plan(&self, numerics: &str, position: u64) -> Claim {
        let ControlRequest::Commit { sampling, .. } = self.commit(session(1), 1, &[]) else {
            panic!("a commit");
        };
        Claim {
            witness: witness_of(&NONCE),
            model: self.model.cid,
            numerics: numerics.to_owned(),
            layers: (0, self.shape.layers),
            total_layers: self.shape.layers,
            position,
            sampling,
            input: [0; 32],
            output: [0; 32],
        }
    }
}

fn numerics() -> String {
    accel_inference::KvFormat::F16.numerics().to_owned()
}

#[actix::test]
async fn two_routes_sign_the_same_and_what_they_sign_can_be_computed_again() {
    let mut bench = Bench::new().await;
    let nodes = [(); 4].map(|()| TestNode::start(&bench.hub, PLENTY, None));
    let ranges = [range(0, 3), range(3, 8)];
    let mut said = Vec::new();
    for (n, pair) in [(1, &nodes[..2]), (2, &nodes[2..])] {
        let stages: Vec<_> = pair.iter().zip(ranges).collect();
        bench.witness(session(n), &stages).await;
        // In two chunks, one of them without a token.
        let mut chunk = tokens(session(n), 1, 1, 0, PROMPT[..2].to_vec());
        if let TensorFrame::Step { sample, .. } = &mut chunk {
            *sample = false;
        }
        bench.step(&pair[0], chunk).await;
        assert!(matches!(bench.frame().await, TensorFrame::Applied { .. }));
        let rest = tokens(session(n), 1, 2, 2, PROMPT[2..].to_vec());
        bench.step(&pair[0], rest).await;
        let (_, claims) = bench.claims().await;
        let peers: Vec<_> = pair
            .iter()
            .map(|node| node.peer)
            .zip([(0, 3), (3, 8)])
            .collect();
        let plan = bench.plan(&numerics(), PROMPT.len() as u64);
        assert!(are_theirs(&plan, &peers, &claims));
        said.push(claims);
    }
    let mut given = Chain::new(&NONCE, 0);
    given.extend_tokens(&PROMPT);
    assert_eq!(given.at(5), Some(said[0][0].input));
    for stage in 0..2 {
        assert_eq!(said[0][stage].output, said[1][stage].output);
        for (changed, verdict) in [(false, Verdict::Truthful), (true, Verdict::Lied)] {
            let node = &nodes[stage];
            let mut claim = Claim {
                layers: (ranges[stage].first, ranges[stage].end),
                input: said[0][stage].input,
                output: said[0][stage].output,
                ..bench.plan(&numerics(), PROMPT.len() as u64)
            };
            claim.output[0] ^= u8::from(changed);
            let signed = claim.sign(&node.deps.identity).expect("it signs");
            let model = ("small", bench.model.bytes);
            let evidence =
                Evidence::new(node.peer, &claim, &signed, model, &NONCE, PROMPT.to_vec());
            let charge = evidence.charge().expect("it is signed");
            let links = recompute(&bench.seeder.deps, charge.clone()).await.unwrap();
            assert_eq!(charge.verdict(links.0, links.1), verdict, "stage {stage}");
        }
    }
    let held = bench.seeder.shelf.memory().1;
    assert_eq!(held, 0, "nothing stays reserved");
}

#[actix::test]
async fn rows_that_were_not_signed_are_not_computed() {
    let mut bench = Bench::new().await;
    let nodes = [(); 2].map(|()| TestNode::start(&bench.hub, PLENTY, None));
    // The coordinator plays the first stage, which signs nothing.
    let stages = [(&nodes[1], range(3, 8))];
    bench.ready(session(1), 1, &stages).await;
    let witness = ControlRequest::Witness {
        session: session(1),
        epoch: 1,
        nonce: NONCE,
    };
    let route = [
        (bench.coordinator, range(0, 3)),
        (nodes[1].peer, range(3, 8)),
    ];
    let mut with_donor = bench.commit(session(1), 1, &route);
    if let ControlRequest::Commit { donor, .. } = &mut with_donor {
        *donor = Some(nodes[0].peer);
    }
    for (request, is_done) in [
        (witness, true),
        (with_donor, false),
        (bench.commit(session(1), 1, &route), true),
    ] {
        let done = nodes[1].control(bench.coordinator, request).await;
        assert_eq!(done.is_ok(), is_done, "{done:?}");
    }
    let hidden = StepInput::hidden(1, &vec![0.5; bench.shape.hidden as usize]);
    let TensorFrame::Step { session, .. } = tokens(session(1), 1, 1, 0, vec![1]) else {
        panic!("a step");
    };
    let step = |number| TensorFrame::Step {
        session,
        epoch: 1,
        step: number,
        position: 0,
        sample: true,
        until: 63,
        input: hidden.clone(),
    };
    let forged = SignedClaim {
        input: [0; 32],
        output: [0; 32],
        signature: [0; 64],
    };
    let frame = Box::new(step(1));
    let claims = vec![forged];
    bench
        .step(&nodes[1], TensorFrame::Claimed { frame, claims })
        .await;
    let refused = bench.frame().await;
    assert!(matches!(&refused, TensorFrame::Failed { code, .. } if code == BOUNDARY_DISPUTED));
}
