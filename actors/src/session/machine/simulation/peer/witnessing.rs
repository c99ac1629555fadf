//! What a stage of a witnessed session says about its work, and what a liar does instead. Accounts and
//! their links are the real ones; signatures are left out, because nobody here can forge one.

use accel_p2p::SignedClaim;

use super::super::messages::Step;
use super::{Cache, Live, Peer, ROW, bytes};
use crate::account;

/// What a liar does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::session::machine::simulation) enum Lie {
    /// It computes something else, and signs that.
    Rows,
    /// It draws another token, and signs that.
    Token,
    /// It computes what is right, and signs something else.
    Claim,
    /// It signs what is right, and sends something else.
    Sends,
    /// It says nothing.
    Silence,
    /// It says that what it was given is not what was signed.
    Accuses,
}

impl Lie {
    /// Whether it can be proven.
    pub(in crate::session::machine::simulation) fn is_provable(self) -> bool {
        matches!(self, Self::Rows | Self::Token)
    }
}

impl Peer {
    /// What it does this time.
    pub(super) fn lies(&mut self) -> Option<Lie> {
        let (lie, share) = self.lie?;
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let roll = (self.dice >> 33) % 100;
        (roll < u64::from(share)).then_some(lie)
    }
}

impl Live {
    /// Takes a step into the account, as the real stage does; whether it is what was signed.
    pub(super) fn given(&self, cache: &Cache, step: &Step, lie: Option<Lie>) -> bool {
        let Some(account) = &cache.account else {
            return true;
        };
        let row_bytes = if self.at == 0 { size_of::<u32>() } else { ROW };
        let data = match self.at {
            0 => step
                .rows
                .iter()
                .flat_map(|row| (*row as u32).to_le_bytes())
                .collect(),
            _ => bytes(&step.rows),
        };
        let tail = account.would_be_given(step.position, &data, row_bytes);
        let tail = tail.expect("the fence has let it through");
        if step.sample && self.at > 0 {
            let is_signed = step.claims.len() == self.at
                && step.claims.last().map(|claim| claim.output) == tail.at(step.rows.len() as u64);
            if !is_signed || lie == Some(Lie::Accuses) {
                return false;
            }
        }
        account.give(step.position, tail);
        true
    }

    /// What the stages up to this one say. Of the rows, those that go on may be others than those
    /// that are signed.
    pub(super) fn claims(
        &self,
        cache: &Cache,
        step: &Step,
        (rows, honest): (&[u64], &[u64]),
        token: u32,
        lie: Option<Lie>,
    ) -> Vec<SignedClaim> {
        let Some(account) = &cache.account else {
            return Vec::new();
        };
        let made = match lie {
            // They are changed below, on their way.
            Some(Lie::Sends) => honest,
            _ => rows,
        };
        account.make(step.position, &bytes(made), ROW);
        if !step.sample || lie == Some(Lie::Silence) {
            return Vec::new();
        }
        let position = step.position + step.rows.len() as u64;
        let input = account.given(position).expect("it was given so much");
        let mut output = match self.next {
            Some(_) => account.made(position).expect("it made so much"),
            None => account::drawn(&input, position, token, 0.0, &[]),
        };
        if lie == Some(Lie::Claim) {
            output[0] ^= 1;
        }
        let mut claims = step.claims.clone();
        claims.push(SignedClaim {
            input,
            output,
            signature: [0; 64],
        });
        claims
    }
}
