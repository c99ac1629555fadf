//! What nodes have of the session on their disks: coordinators write their own, and copies are kept for
//! others. As in the real journal, whoever has a claim that is not the newest may not write.

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::StdRng;

use crate::error::SESSION_MOVED;
use crate::session::event::Drawn;
use crate::session::record::Ended;

/// A node's journal.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// Whether the session is there at all.
    is_open: bool,
    /// Whether it is a copy for a coordinator elsewhere.
    is_kept: bool,
    claim: u64,
    tokens: Vec<Drawn>,
    /// What was handed over and is not durable yet.
    writing: BTreeMap<u64, Drawn>,
    ended: Option<Ended>,
}

impl Disk {
    pub(super) fn open(&mut self) {
        self.is_open = true;
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether others are told of it: it is a copy, or was taken up before.
    pub(super) fn may_leave(&self) -> bool {
        self.is_kept || self.claim > 0
    }

    pub(super) fn tokens(&self) -> &[Drawn] {
        &self.tokens
    }

    pub(super) fn len(&self) -> u64 {
        self.tokens.len() as u64
    }

    pub(super) fn newest(&self) -> u64 {
        self.claim
    }

    pub(super) fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Whether this coordinator may write.
    pub(super) fn is_of(&self, claim: u64) -> bool {
        self.claim == claim && !self.is_kept
    }

    /// Its node's coordinator takes the session over; whether it may.
    pub(super) fn claim(&mut self, claim: u64) -> bool {
        let may = claim > self.claim;
        if may {
            (self.claim, self.is_kept, self.ended) = (claim, false, None);
        }
        may
    }

    /// A coordinator elsewhere wants it kept here.
    pub(super) fn keep(&mut self, claim: u64) -> Result<(), &'static str> {
        let is_newer = !self.is_open || claim > self.claim;
        let is_its = self.is_kept && claim == self.claim;
        if !is_newer && !is_its {
            return Err(SESSION_MOVED);
        }
        if self.ended.is_some() && !is_newer {
            return Err(SESSION_MOVED);
        }
        (self.is_open, self.is_kept, self.ended) = (true, true, None);
        self.claim = claim;
        self.writing.clear();
        Ok(())
    }

    /// What a coordinator elsewhere wants appended.
    pub(super) fn append(
        &mut self,
        claim: u64,
        first: usize,
        tokens: Vec<Drawn>,
    ) -> Result<usize, &'static str> {
        if !self.is_open || !self.is_kept || claim != self.claim {
            return Err(SESSION_MOVED);
        }
        let end = first + tokens.len();
        self.extend(first, &tokens);
        assert!(end <= self.tokens.len(), "no gap");
        Ok(end)
    }

    fn extend(&mut self, first: usize, tokens: &[Drawn]) {
        for (index, drawn) in (first..).zip(tokens) {
            match self.tokens.get(index) {
                Some(before) => assert_eq!(before, drawn, "two coordinators disagree"),
                None => self.tokens.push(drawn.clone()),
            }
        }
    }

    /// Takes what another node has of it.
    pub(super) fn adopt(&mut self, other: &Self) {
        let is_done = matches!(self.ended, Some(Ended::Done(_)));
        let is_over = self.ended.is_some() && other.claim <= self.claim;
        if !other.is_open || is_done || is_over {
            return;
        }
        self.extend(0, &other.tokens);
        if !self.is_open || other.claim > self.claim {
            (self.is_open, self.is_kept, self.ended) = (true, true, None);
            self.claim = other.claim;
        }
        if let Some(ended @ Ended::Done(_)) = &other.ended {
            self.ended = Some(ended.clone());
        }
    }

    pub(super) fn write(&mut self, index: u64, drawn: Drawn) {
        self.writing.insert(index, drawn);
    }

    /// Everything up to a token is durable.
    pub(super) fn written(&mut self, index: u64) {
        while let Some(next) = self.writing.first_entry() {
            if *next.key() > index {
                return;
            }
            let (at, drawn) = next.remove_entry();
            let at = at as usize;
            assert!(at <= self.tokens.len(), "no gap");
            self.extend(at, &[drawn]);
        }
    }

    /// How it ended, written behind the tokens.
    pub(super) fn close(&mut self, ended: Ended) {
        self.written(u64::MAX);
        self.ended = Some(ended);
    }

    /// Of what was being written, some may be there.
    pub(super) fn settle(&mut self, rng: &mut StdRng) {
        let some = rng.random_range(0..=self.writing.len());
        if let Some(index) = self.writing.keys().take(some).next_back().copied() {
            self.written(index);
        }
        self.writing.clear();
    }
}
