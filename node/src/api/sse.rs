//! Server-sent events.

use std::fmt::Write;

use bytes::Bytes;
use serde_json::Value;

/// What ends a stream of OpenAI's.
pub const DONE: &str = "[DONE]";

/// One event. JSON has no bare newline, so each fits on one `data` line.
pub fn event(id: Option<&str>, data: &Value) -> Bytes {
    text_event(id, &data.to_string())
}

/// One event whose data is a plain word.
pub fn text_event(id: Option<&str>, data: &str) -> Bytes {
    let mut text = String::with_capacity(data.len() + 64);
    if let Some(id) = id {
        writeln!(text, "id: {id}").expect("a string takes every write");
    }
    write!(text, "data: {data}\n\n").expect("a string takes every write");
    Bytes::from(text)
}

/// A comment: keeps proxies from closing the connection, and finds out that a client is gone.
pub fn keep_alive() -> Bytes {
    Bytes::from_static(b": still computing\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_is_one_data_line_with_its_id() {
        let bytes = event(Some("5e55:0"), &json!({"text": "a\nb"}));
        assert_eq!(bytes, "id: 5e55:0\ndata: {\"text\":\"a\\nb\"}\n\n");
        assert_eq!(text_event(None, DONE), "data: [DONE]\n\n");
    }

    #[test]
    fn a_keep_alive_is_a_comment() {
        assert!(keep_alive().starts_with(b":") && keep_alive().ends_with(b"\n\n"));
    }
}
