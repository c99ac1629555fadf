//! What the bench does around the jury: checks what lanes say, withholds tokens, and carries out what
//! is ruled.

use super::super::messages::Report;
use super::stages::failed;
use super::{Lanes, NONCE, fixtures, toy};
use crate::account::{self, Chain};
use crate::error::Failure;
use crate::session::event::{Drawn, Event};
use crate::session::jury::{Lane, Ruling, Statement};
use crate::session::recovery::FaultKind;

impl Lanes {
    pub(super) fn hear(&mut self, number: u64, from: usize, report: Report) {
        let Some(lane) = self.lane(number) else {
            return;
        };
        let Some(at) = self.at_of(lane, from) else {
            return;
        };
        let nodes = self.route_of(lane);
        let is_last = at + 1 == nodes.len();
        match report {
            Report::Failed { .. } => {
                let event = failed(&nodes, at, &report, |node| fixtures::peer(node as u8));
                if let Some(event) = event {
                    self.feed(lane, event);
                }
            }
            Report::Applied { epoch, step } => {
                let stage = at;
                self.feed(lane, Event::Applied { epoch, step, stage });
            }
            Report::Token {
                epoch,
                step,
                position,
                token,
                claims,
            } if is_last => {
                let drawn = Drawn {
                    token,
                    logprob: 0.0,
                    top: Vec::new(),
                };
                let statement = Statement {
                    position,
                    peers: nodes
                        .iter()
                        .map(|node| fixtures::peer(*node as u8))
                        .collect(),
                    claims,
                    drawn,
                };
                self.testify(lane, (epoch, step), statement);
            }
            Report::Token { .. } | Report::Moved { .. } => {}
        }
    }

    fn route_of(&self, lane: Lane) -> Vec<usize> {
        let run = self.runs.get(&lane).expect("the lane runs");
        run.machine
            .route
            .iter()
            .map(|stage| self.node(stage.peer))
            .collect()
    }

    fn testify(&mut self, lane: Lane, (epoch, step): (u64, u64), statement: Statement) {
        let run = self.runs.get_mut(&lane).expect("the lane runs");
        if !run.machine.expects_token(epoch, step) {
            return;
        }
        if !self.is_possible(&statement) {
            let culprit = statement.peers.last().copied();
            let failure = Failure::unavailable("unwitnessed", "it cannot be", "wait");
            return self.feed(
                lane,
                Event::StepFailed {
                    epoch,
                    culprit,
                    failure,
                },
            );
        }
        let Drawn { token, .. } = statement.drawn;
        let is_true = self.is_true(statement.position, token) && self.is_honest(&statement);
        self.heard |= !is_true;
        let event = Event::Token {
            epoch,
            step,
            position: statement.position,
            drawn: statement.drawn.clone(),
        };
        let run = self.runs.get_mut(&lane).expect("the lane runs");
        run.held = Some((epoch, event));
        let rulings = self.jury.said(lane, statement);
        if lane == Lane::Third {
            self.cancel_now();
        }
        self.carry_out_all(rulings);
    }

    /// As the bench checks it; signatures are left out.
    fn is_possible(&self, statement: &Statement) -> bool {
        let claims = &statement.claims;
        let (Some(first), Some(last)) = (claims.first(), claims.last()) else {
            return false;
        };
        let mut given = Chain::new(&NONCE, 0);
        given.extend_tokens(&self.tokens);
        let follows = claims
            .windows(2)
            .all(|pair| pair[0].output == pair[1].input);
        let token = statement.drawn.token;
        claims.len() == self.cuts.len()
            && follows
            && given.at(statement.position) == Some(first.input)
            && account::drawn(&last.input, statement.position, token, 0.0, &[]) == last.output
    }

    /// Whether every stage says what an honest one would.
    fn is_honest(&self, statement: &Statement) -> bool {
        let mut rows: Vec<u64> = self.tokens.iter().map(|token| u64::from(*token)).collect();
        rows.truncate(statement.position as usize);
        let claims = statement.claims.iter().zip(&self.cuts);
        let mut is_honest = true;
        for (claim, layers) in claims {
            let mut stage = toy::Layers::new(*layers);
            rows = rows.iter().map(|row| stage.row(*row)).collect();
            if layers.end < toy::LAYERS {
                let mut made = Chain::new(&NONCE, layers.end);
                made.extend(
                    &rows
                        .iter()
                        .flat_map(|row| row.to_le_bytes())
                        .collect::<Vec<u8>>(),
                    8,
                );
                is_honest &= made.at(statement.position) == Some(claim.output);
            }
        }
        is_honest
    }

    fn cancel_now(&mut self) {
        self.cancel(Lane::Third);
        self.runs.remove(&Lane::Third);
    }

    fn carry_out_all(&mut self, rulings: Vec<Ruling>) {
        for ruling in rulings {
            if self.tells {
                println!("{:>6} {ruling:?}", self.now);
            }
            match ruling {
                Ruling::Accept(lane) => self.accept(lane),
                Ruling::Condemn {
                    lane,
                    statement,
                    stage,
                } => {
                    let peer = statement.peers[stage];
                    self.quarantined.insert(self.node(peer));
                    let run = lane.and_then(|lane| self.runs.get_mut(&lane));
                    if let Some((run, (epoch, _))) = run.and_then(|run| {
                        let held = run.held.take()?;
                        Some((run, held))
                    }) {
                        let number = run.number;
                        let event = Event::Distrusted {
                            epoch,
                            peers: vec![peer],
                            kind: FaultKind::PeerLied,
                            failure: Failure::unavailable("peer_lied", "it lied", "wait"),
                        };
                        self.soon(number, event);
                    }
                }
                Ruling::Convene { excluding } => {
                    self.partial = excluding.iter().map(|peer| self.node(*peer)).collect();
                    self.launch(Lane::Third, 1);
                }
                Ruling::Dismiss => self.cancel_now(),
                Ruling::Undecided => {
                    let failure = Failure::unavailable("no_majority", "undecided", "wait");
                    self.feed(Lane::Primary, Event::GiveUp(failure));
                }
            }
        }
    }

    fn accept(&mut self, lane: Lane) {
        let Some(run) = self.runs.get_mut(&lane) else {
            return;
        };
        let Some((_, event)) = run.held.take() else {
            return;
        };
        let number = run.number;
        if let Event::Token {
            position, drawn, ..
        } = &event
        {
            assert!(
                self.is_true(*position, drawn.token),
                "a wrong token is accepted"
            );
            if *position == self.tokens.len() as u64 {
                self.tokens.push(drawn.token);
            }
        }
        self.soon(number, event);
    }
}
