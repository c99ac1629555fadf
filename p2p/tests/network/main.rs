//! Whole networks on loopback: what nodes see of each other, and what strangers do not.

mod blocks;
mod control;
mod discovery;
mod refusal;
mod replica;
mod restart;
mod support;
