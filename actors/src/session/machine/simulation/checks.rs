//! The rules, checked at every command of the machine, and at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use accel_p2p::PeerId;

use super::Seen;
use super::desk::Desk;
use super::storm::DISK;
use super::toy;
use super::weather::{Promise, Weather};
use crate::request::FinishReason;
use crate::session::event::{Command, Outcome};
use crate::session::machine::{CHUNK, Machine};
use crate::tolerance::FaultTolerance;

/// What was seen of a session, beside what it should be.
pub(super) struct Rules {
    prompt: Vec<u32>,
    expected: Vec<u32>,
    finish: FinishReason,
    stop: Option<u32>,
    /// How many tokens the client has.
    pub(super) received: u64,
    text: String,
    /// Every stage that was asked for, by any coordinator.
    prepared: BTreeSet<(u64, usize)>,
    /// Positions that each stage has or was sent, by epoch and stage, and the steps that they
    /// went in.
    lengths: BTreeMap<(u64, usize), u64>,
    steps: BTreeMap<(u64, u64), Command>,
    seen: Vec<Seen>,
}

/// What a coordinator did.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    journaled: u64,
    durable: u64,
    emitted: u64,
    epoch: u64,
    /// Who was asked to prepare and not told since that it is over.
    obliged: BTreeMap<PeerId, u64>,
    /// Whether any stage was sent anything.
    computed: bool,
}

impl Conduct {
    /// One that goes on behind what the client has, with so many tokens on the disk.
    pub(super) fn resumed(received: u64, durable: u64, epoch: u64) -> Self {
        assert!(received <= durable, "the client has what is on no disk");
        Self {
            journaled: durable,
            durable,
            emitted: received,
            // It may not have heard of the newest one: then the stages refuse its epochs.
            epoch,
            obliged: BTreeMap::new(),
            computed: true,
        }
    }

    /// Everything up to this token is on disk.
    pub(super) fn durable(&mut self, index: u64) {
        self.durable = self.durable.max(index + 1);
    }

    fn prepare(&mut self, epoch: u64, peer: PeerId) {
        assert!(epoch >= self.epoch, "epochs only grow");
        self.epoch = epoch;
        self.obliged.insert(peer, epoch);
    }

    fn told(&mut self, peer: PeerId, epoch: u64) {
        if self.obliged.get(&peer).is_some_and(|by| *by <= epoch) {
            self.obliged.remove(&peer);
        }
    }
}

impl Rules {
    pub(super) fn new(prompt: Vec<u32>, weather: &Weather) -> Self {
        let (expected, finish) = toy::answer(&prompt, weather.max_new, weather.stop);
        Self {
            prompt,
            expected,
            finish,
            stop: weather.stop,
            received: 0,
            text: String::new(),
            prepared: BTreeSet::new(),
            lengths: BTreeMap::new(),
            steps: BTreeMap::new(),
            seen: Vec::new(),
        }
    }

    pub(super) fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// Of what the machine commands, everything is as it should be.
    pub(super) fn command(&mut self, command: &Command, desk: &mut Desk) {
        let Desk {
            machine, conduct, ..
        } = desk;
        match command {
            Command::Prepare { .. }
            | Command::Commit { .. }
            | Command::Abort { .. }
            | Command::Release { .. }
            | Command::Close(_) => self.placement(command, machine, conduct),
            Command::Forward { .. } | Command::Replay { .. } | Command::Copy { .. } => {
                conduct.computed = true;
                self.computing(command, machine);
            }
            Command::JournalToken { index, drawn } => {
                assert_eq!(*index, conduct.journaled, "journaled in order, once");
                conduct.journaled += 1;
                self.is_expected(*index, drawn.token);
            }
            Command::Emit { index, drawn, .. } => {
                assert_eq!(*index, conduct.emitted, "emitted in order, once");
                assert!(*index < conduct.durable, "emitted before it was journaled");
                conduct.emitted += 1;
                self.is_expected(*index, drawn.token);
            }
            Command::Recovering { .. }
            | Command::Wagered { .. }
            | Command::Rebuilding { .. }
            | Command::Moved
            | Command::MoveDropped { .. }
            | Command::Switching { .. } => self.seen.extend(turn(command)),
            Command::JournalOpen
            | Command::JournalClaim { .. }
            | Command::Plan { .. }
            | Command::Reconnect { .. }
            | Command::Leave { .. }
            | Command::Recovered
            | Command::Weighed { .. }
            | Command::FindStandIns { .. }
            | Command::FindReplicas { .. }
            | Command::OpenReplica { .. }
            | Command::DropReplica { .. }
            | Command::Arm(_) => {}
        }
    }

    /// Whoever is asked to take part is told how it ends, under an epoch that is used once.
    fn placement(&mut self, command: &Command, machine: &Machine, conduct: &mut Conduct) {
        match command {
            Command::Prepare { epoch, stage, .. } => {
                let party = machine.party(*epoch, *stage).expect("somebody");
                let is_new = self.prepared.insert((*epoch, *stage));
                assert!(is_new, "an epoch is used once");
                conduct.prepare(*epoch, party.peer);
            }
            Command::Commit {
                epoch,
                stage,
                length,
                ..
            } => {
                assert!(*epoch >= machine.epoch(), "an old epoch");
                self.lengths.insert((*epoch, *stage), *length);
            }
            // What was computed may stay after an abort.
            Command::Abort { .. } if conduct.computed => {}
            Command::Abort { epoch, stage } | Command::Release { epoch, stage } => {
                conduct.told(stage.peer, *epoch);
            }
            Command::Close(outcome) => {
                let obliged = &conduct.obliged;
                assert!(
                    obliged.is_empty(),
                    "never told that it is over: {obliged:?}"
                );
                let is_deposed = matches!(outcome, Outcome::Moved(_));
                self.seen.extend(is_deposed.then_some(Seen::Deposed));
            }
            other => unreachable!("{other:?} places nothing"),
        }
    }

    /// What stages are given to compute is what was drawn, and goes to stages that are there.
    fn computing(&mut self, command: &Command, machine: &Machine) {
        match command {
            Command::Forward {
                epoch,
                step,
                position,
                sample,
                until,
                tokens,
            } => {
                let known = self.prompt.iter().chain(&self.expected);
                let known = known.skip(*position as usize).take(tokens.len());
                assert!(known.eq(tokens), "the stages get what was drawn");
                let is_last = until + 1 == machine.route_of(*epoch).len();
                assert!(is_last || !sample, "a token without the last stage");
                let is_newest = *epoch == machine.epoch();
                assert!(is_newest || !sample, "a token of another epoch");
                let (fed, rows) = (0..=*until, tokens.len());
                self.step(command, machine, (*epoch, *step), fed, *position, rows);
            }
            Command::Replay {
                epoch,
                step,
                stage,
                position,
                rows,
                until,
            } => {
                let (fed, rows) = (stage + 1..=*until, *rows as usize);
                assert!(!fed.is_empty() && *until < machine.route_of(*epoch).len());
                self.step(command, machine, (*epoch, *step), fed, *position, rows);
            }
            Command::Copy {
                epoch,
                step,
                donor,
                stage,
                position,
                rows,
            } => {
                let layers = |n| machine.party(*epoch, n).map(|party| party.layers);
                assert_eq!(layers(*donor), layers(*stage));
                let (fed, rows) = (*stage..=*stage, *rows as usize);
                self.step(command, machine, (*epoch, *step), fed, *position, rows);
            }
            other => unreachable!("{other:?} computes nothing"),
        }
    }

    /// The client got a token.
    pub(super) fn receive(&mut self, index: u64, text: &str) {
        assert_eq!(
            index, self.received,
            "the client gets every token once, in order"
        );
        self.received += 1;
        self.text.push_str(text);
    }

    fn is_expected(&self, index: u64, token: u32) {
        let expected = self.expected.get(index as usize);
        assert_eq!(Some(&token), expected, "token {index} is another one");
    }

    /// Every stage that a step is for gets every position once, in order, above what it has.
    fn step(
        &mut self,
        command: &Command,
        machine: &Machine,
        name: (u64, u64),
        stages: RangeInclusive<usize>,
        position: u64,
        rows: usize,
    ) {
        let is_fed = machine.moves_to(name.0);
        assert!(
            name.0 == machine.epoch() || is_fed,
            "only the newest epoch computes"
        );
        assert!(rows > 0 && rows <= CHUNK);
        if let Some(before) = self.steps.insert(name, command.clone()) {
            return assert_eq!(before, *command, "a repeat says something else");
        }
        for stage in stages {
            let length = self.lengths.get_mut(&(name.0, stage));
            let length = length.expect("a stage that was committed");
            assert_eq!(*length, position, "no gap and no repeat at stage {stage}");
            *length += rows as u64;
        }
    }

    /// How the session went on, each time.
    pub(super) fn seen(self) -> Vec<Seen> {
        self.seen
    }

    pub(super) fn see(&mut self, seen: Seen) {
        self.seen.push(seen);
    }

    /// The session is over, as the client was told: is it as it was promised?
    pub(super) fn conclude(&self, outcome: Option<&Outcome>, weather: &Weather) {
        let outcome = outcome.expect("it ended");
        let complete = Outcome::Done {
            finish: self.finish,
            completion_tokens: self.expected.len() as u64,
            text_tail: String::new(),
        };
        if weather.promise == Promise::Undisturbed {
            let faults = self
                .seen
                .iter()
                .filter(|seen| !matches!(seen, Seen::Moved | Seen::CutAnew));
            assert_eq!(
                faults.count(),
                0,
                "nothing had to be recovered: {:?}",
                self.seen
            );
        }
        if *outcome == Outcome::Cancelled {
            assert!(weather.broken_off, "nobody cancelled it");
            return;
        }
        if let Outcome::Failed(failure) = outcome {
            assert_eq!(weather.promise, Promise::EndsWell, "{failure:?}");
            assert!(!failure.message.is_empty() && !failure.hint.is_empty());
            let code = failure.code.as_str();
            let gave_up = ["no_stand_in", "no_progress"].contains(&code);
            let disk_full = weather.broken_off && failure.message == DISK;
            let may_fail = weather.level < FaultTolerance::Medium || gave_up || disk_full;
            assert!(may_fail, "{failure:?}");
            return;
        }
        assert_eq!(*outcome, complete);
        if weather.broken_off {
            // Whoever went away behind the last token did not get all of it.
            return;
        }
        assert_eq!(self.received, self.expected.len() as u64, "all of it");
        assert_eq!(self.text, self.expected_text());
    }

    fn expected_text(&self) -> String {
        let written = self
            .expected
            .iter()
            .filter(|token| self.stop != Some(**token));
        written.map(|token| format!("{token} ")).collect()
    }
}

/// What a command tells of how the session goes on.
fn turn(command: &Command) -> Option<Seen> {
    match command {
        Command::Recovering { fault, remedy, .. } => Some(Seen::Recovery(*fault, *remedy)),
        Command::Wagered { races: true, .. } => Some(Seen::Raced),
        Command::Rebuilding { way, .. } => Some(Seen::Rebuild(way)),
        Command::Moved => Some(Seen::Moved),
        Command::MoveDropped { .. } => Some(Seen::MoveDropped),
        Command::Switching {
            cuts_anew: true, ..
        } => Some(Seen::CutAnew),
        _ => None,
    }
}
