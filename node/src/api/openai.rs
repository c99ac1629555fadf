//! The shapes of OpenAI's protocol: what a request may say and what an answer looks like.
//!
//! `fields` reads one JSON object strictly, so that every complaint names its parameter;
//! `request` turns it into a checked request; `response` writes whole answers and stream chunks.

pub mod fields;
pub mod request;
pub mod response;
