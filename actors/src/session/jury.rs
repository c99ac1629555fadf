//! Who is right when stages are computed twice. Pure: statements of lanes in, rulings out.
//!
//! A lane is a whole route; the lanes of a session have the same cuts and, at each stage, different
//! peers. A statement is what a lane says about one token, with the link of each stage's output.
//! Nothing is accepted that two different peers did not say at every stage.
//!
//! Where statements differ, the first stage at which they do decides: up to there all were given the
//! same, so whoever is alone with what it made of it is wrong, and the others are right as long as
//! no two of them lie in the same way. Where nobody has a majority a third opinion is asked for,
//! of peers that have not spoken about that stage.

use std::collections::{BTreeSet, VecDeque};

use accel_p2p::{Link, PeerId, SignedClaim};

use super::event::Drawn;

/// Statements that are remembered for a lane that is behind, because it goes on without a peer.
const REMEMBERED: usize = 8;
/// Third opinions about one token, at most.
const MOST_OPINIONS: u32 = 3;

/// A route that computes the session's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// The one with the journal and the client.
    Primary,
    /// The one that computes the same beside it.
    Shadow,
    /// The one that is asked when they differ.
    Third,
}

/// What a lane says about a token. The claims fit each other and are signed by the peers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Statement {
    /// The position that the token takes.
    pub(crate) position: u64,
    /// Who computed it, stage by stage.
    pub(crate) peers: Vec<PeerId>,
    /// What each says, in the same order.
    pub(crate) claims: Vec<SignedClaim>,
    pub(crate) drawn: Drawn,
}

impl Statement {
    fn output(&self, stage: usize) -> Option<Link> {
        self.claims.get(stage).map(|claim| claim.output)
    }

    fn peer(&self, stage: usize) -> Option<PeerId> {
        self.peers.get(stage).copied()
    }

    /// The first stage whose output is another.
    fn parts_from(&self, other: &Self) -> Option<usize> {
        let stages = self.claims.len().max(other.claims.len());
        (0..stages).find(|stage| self.output(*stage) != other.output(*stage))
    }
}

/// What follows from what was said.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ruling {
    /// What the lane said is right.
    Accept(Lane),
    /// A peer said what is not so.
    Condemn {
        /// Whose present word that is; none if the lane has gone on without the peer already.
        lane: Option<Lane>,
        statement: Statement,
        stage: usize,
    },
    /// Another opinion is needed, of none of these peers.
    Convene { excluding: Vec<PeerId> },
    /// No other opinion is needed any more.
    Dismiss,
    /// Nobody can tell who is right.
    Undecided,
}

#[derive(Debug)]
struct Opinion {
    lane: Lane,
    statement: Statement,
    /// Whether the lane still says so.
    stands: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Jury {
    position: u64,
    opinions: Vec<Opinion>,
    /// The last statements that were accepted.
    settled: VecDeque<Statement>,
    convened: u32,
    /// Whether a third opinion is awaited.
    awaits: bool,
}

impl Jury {
    /// Takes a statement in.
    pub(crate) fn said(&mut self, lane: Lane, statement: Statement) -> Vec<Ruling> {
        if lane == Lane::Third {
            self.awaits = false;
        }
        let newest = self.settled.back().map(|settled| settled.position);
        if newest.is_some_and(|newest| newest >= statement.position) {
            return self.late(lane, statement);
        }
        if statement.position > self.position {
            self.position = statement.position;
            self.opinions.clear();
            self.convened = 0;
        }
        let mut standing = self.opinions.iter_mut().filter(|opinion| opinion.stands);
        if let Some(before) = standing.find(|opinion| opinion.lane == lane) {
            if before.statement == statement {
                return Vec::new();
            }
            before.stands = false;
        }
        self.opinions.push(Opinion {
            lane,
            statement,
            stands: true,
        });
        self.deliberate()
    }

    /// The third opinion does not come.
    pub(crate) fn third_is_gone(&mut self) -> Vec<Ruling> {
        match std::mem::take(&mut self.awaits) {
            true => vec![Ruling::Undecided],
            false => Vec::new(),
        }
    }

    fn deliberate(&mut self) -> Vec<Ruling> {
        let mut rulings = Vec::new();
        while let Some(stage) = self.first_difference() {
            let Some(right) = self.majority(stage) else {
                rulings.extend(self.ask(stage));
                return rulings;
            };
            let all = std::mem::take(&mut self.opinions).into_iter();
            let is_right = |opinion: &Opinion| opinion.statement.output(stage) == Some(right);
            let (stay, wrong): (Vec<_>, Vec<_>) = all.partition(is_right);
            self.opinions = stay;
            rulings.extend(wrong.into_iter().map(|opinion| Ruling::Condemn {
                lane: opinion.stands.then_some(opinion.lane),
                statement: opinion.statement,
                stage,
            }));
        }
        if std::mem::take(&mut self.awaits) {
            rulings.push(Ruling::Dismiss);
        }
        rulings.extend(self.settle());
        rulings
    }

    /// The first stage at which not all say the same.
    fn first_difference(&self) -> Option<usize> {
        let (first, others) = self.opinions.split_first()?;
        let stages = others
            .iter()
            .filter_map(|other| first.statement.parts_from(&other.statement));
        stages.min()
    }

    /// What two different peers, and no other two, say about a stage.
    fn majority(&self, stage: usize) -> Option<Link> {
        let outputs = self
            .opinions
            .iter()
            .filter_map(|opinion| opinion.statement.output(stage));
        let outputs: BTreeSet<Link> = outputs.collect();
        let mut backed = outputs
            .into_iter()
            .filter(|output| self.backers(stage, output).len() > 1);
        let right = backed.next();
        right.filter(|_| backed.next().is_none())
    }

    fn backers(&self, stage: usize, output: &Link) -> BTreeSet<PeerId> {
        let opinions = self.opinions.iter().map(|opinion| &opinion.statement);
        let backing = opinions.filter(|statement| statement.output(stage) == Some(*output));
        backing
            .filter_map(|statement| statement.peer(stage))
            .collect()
    }

    fn ask(&mut self, stage: usize) -> Option<Ruling> {
        if self.awaits {
            return None;
        }
        if self.convened >= MOST_OPINIONS {
            return Some(Ruling::Undecided);
        }
        self.convened += 1;
        self.awaits = true;
        let peers = self.opinions.iter();
        let peers: BTreeSet<PeerId> = peers
            .filter_map(|opinion| opinion.statement.peer(stage))
            .collect();
        Some(Ruling::Convene {
            excluding: peers.into_iter().collect(),
        })
    }

    /// All who are left say the same. That counts once two lanes and, at every stage, two peers have
    /// said so.
    fn settle(&mut self) -> Vec<Ruling> {
        let Some(first) = self
            .opinions
            .first()
            .map(|opinion| opinion.statement.clone())
        else {
            return Vec::new();
        };
        let is_backed =
            |(stage, claim): (usize, &SignedClaim)| self.backers(stage, &claim.output).len() > 1;
        let standing = self.opinions.iter().filter(|opinion| opinion.stands);
        let lanes: BTreeSet<Lane> = standing.map(|opinion| opinion.lane).collect();
        if lanes.len() < 2 || !first.claims.iter().enumerate().all(is_backed) {
            return Vec::new();
        }
        let lanes = lanes.into_iter().filter(|lane| *lane != Lane::Third);
        let rulings = lanes.map(Ruling::Accept).collect();
        if self.settled.len() >= REMEMBERED {
            self.settled.pop_front();
        }
        self.settled.push_back(first);
        self.opinions.clear();
        rulings
    }

    /// A lane that went on without a peer says again what is settled; or something else, against two.
    fn late(&self, lane: Lane, statement: Statement) -> Vec<Ruling> {
        if lane == Lane::Third {
            return Vec::new();
        }
        let mut settled = self.settled.iter();
        let settled = settled.find(|settled| settled.position == statement.position);
        let Some(settled) = settled else {
            // It is further behind than anybody remembers.
            return vec![Ruling::Undecided];
        };
        match settled.parts_from(&statement) {
            None => vec![Ruling::Accept(lane)],
            Some(stage) => vec![Ruling::Condemn {
                lane: Some(lane),
                statement,
                stage,
            }],
        }
    }
}

#[cfg(test)]
mod tests;
