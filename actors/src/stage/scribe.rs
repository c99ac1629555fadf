//! What a stage of a witnessed session says about its work. What a step brings must be what the
//! stages before have signed, or it is not computed: so whoever signs a claim cannot say later
//! that it was given something else.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use accel_p2p::wire::{Claim, Hop, SamplingWire, SignedClaim, StepInput, TensorFrame};
use accel_p2p::{Keypair, PeerId};

use super::ledger::StageKey;
use super::outlet::StepName;
use super::server::StageDeps;
use crate::account::{self, Account};

/// The code of failures because a step is not what the stages before say of it.
pub(crate) const BOUNDARY_DISPUTED: &str = "boundary_disputed";
/// The code of failures because a stage cannot say what it was given and made of it.
pub(super) const NO_ACCOUNT: &str = "no_account";
/// Steps whose claims are remembered: more than can be under way.
const REMEMBERED: usize = 8;

/// See the module.
pub(super) struct Scribe {
    account: Arc<Account>,
    identity: Keypair,
    /// The stages up to this one: who and which layers.
    stages: Vec<(PeerId, (u32, u32))>,
    /// What all claims of the plan have in common.
    plan: Claim,
    /// What the stages before said about steps that are under way.
    before: Mutex<VecDeque<(u64, Vec<SignedClaim>)>>,
}

impl Scribe {
    /// Of the stage that is the `at`th of a route.
    pub(super) fn new(
        deps: &StageDeps,
        key: &StageKey,
        account: Arc<Account>,
        route: &[Hop],
        at: usize,
        sampling: SamplingWire,
        numerics: &str,
    ) -> Self {
        let stages = route.iter().take(at + 1);
        let total_layers = route.last().map_or(0, |hop| hop.layers.1);
        let plan = Claim {
            witness: account.witness(),
            model: key.model,
            numerics: numerics.to_owned(),
            layers: (key.layers.first, key.layers.end),
            total_layers,
            position: 0,
            sampling,
            input: [0; 32],
            output: [0; 32],
        };
        Self {
            account,
            identity: deps.identity.clone(),
            stages: stages.map(|hop| (hop.peer, hop.layers)).collect(),
            plan,
            before: Mutex::default(),
        }
    }

    /// Takes in what a step brings.
    pub(super) fn given(
        &self,
        name: StepName,
        input: &StepInput,
        claims: Vec<SignedClaim>,
    ) -> Result<(), &'static str> {
        let tail = match input {
            StepInput::Tokens(tokens) => {
                let bytes: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
                self.account
                    .would_be_given(name.position, &bytes, size_of::<u32>())
            }
            StepInput::Hidden { rows, data } => {
                let row_bytes = data.len() / (*rows as usize).max(1);
                self.account.would_be_given(name.position, data, row_bytes)
            }
        };
        let tail = tail.ok_or("the step does not follow what is in the account")?;
        if name.sample {
            let input = tail
                .at(name.rows)
                .ok_or("the step has other rows than it says")?;
            self.check(name.position + name.rows, input, &claims)?;
            let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
            if before.len() >= REMEMBERED {
                before.pop_front();
            }
            before.push_back((name.step, claims));
        }
        self.account.give(name.position, tail);
        Ok(())
    }

    /// The claims of the stages before fit each other and what came, and are theirs.
    fn check(
        &self,
        position: u64,
        given: [u8; 32],
        claims: &[SignedClaim],
    ) -> Result<(), &'static str> {
        let Some((_, before)) = self.stages.split_last() else {
            return Err("the stage is not in its own route");
        };
        if claims.len() != before.len() {
            return Err("a stage before says nothing about the step");
        }
        let plan = Claim {
            position,
            ..self.plan.clone()
        };
        if !are_theirs(&plan, before, claims) {
            return Err("a stage before did not sign what it says, or says what cannot be");
        }
        match claims.last().is_none_or(|last| last.output == given) {
            true => Ok(()),
            false => Err("the rows are not those that the stage before has signed"),
        }
    }

    /// Takes in output rows.
    pub(super) fn made(&self, position: u64, rows: u32, data: &[u8]) {
        let row_bytes = data.len() / (rows as usize).max(1);
        self.account.make(position, data, row_bytes);
    }

    /// What the stages up to this one say about a result, if a token depends on it.
    pub(super) fn claims(
        &self,
        name: StepName,
        frame: &TensorFrame,
    ) -> Option<Result<Vec<SignedClaim>, &'static str>> {
        let position = name.position + name.rows;
        let output = match frame {
            TensorFrame::Step { sample: true, .. } => self.account.made(position),
            TensorFrame::Token {
                token,
                logprob,
                top,
                ..
            } => {
                let given = self.account.given(position);
                given.map(|given| account::drawn(&given, position, *token, *logprob, top))
            }
            _ => return None,
        };
        let claims = self.sign(name.step, position, output);
        Some(claims.ok_or("the stage has no account of the step"))
    }

    fn sign(&self, step: u64, position: u64, output: Option<[u8; 32]>) -> Option<Vec<SignedClaim>> {
        let claim = Claim {
            position,
            input: self.account.given(position)?,
            output: output?,
            ..self.plan.clone()
        };
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        let at = before.iter().position(|(of, _)| *of == step)?;
        let (_, mut claims) = before.remove(at)?;
        claims.push(claim.sign(&self.identity)?);
        Some(claims)
    }
}

/// Whether claims are signed by these stages, and each begins where the one before ended. `plan` has
/// what they have in common.
pub(crate) fn are_theirs(
    plan: &Claim,
    stages: &[(PeerId, (u32, u32))],
    claims: &[SignedClaim],
) -> bool {
    let follows = |pair: &[SignedClaim]| matches!(pair, [a, b] if a.output == b.input);
    let is_signed = |((peer, layers), claim): (&(PeerId, (u32, u32)), &SignedClaim)| {
        let said = Claim {
            layers: *layers,
            input: claim.input,
            output: claim.output,
            ..plan.clone()
        };
        said.is_signed_by(peer, &claim.signature)
    };
    claims.windows(2).all(follows)
        && stages.len() == claims.len()
        && stages.iter().zip(claims).all(is_signed)
}
