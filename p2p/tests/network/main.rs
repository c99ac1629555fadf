//! Whole networks on loopback: what nodes see of each other, and what strangers do not.

mod blocks;
mod control;
mod discovery;
mod half_open;
mod refusal;
mod replica;
mod restart;
mod support;
