use super::*;
use serde_json::Value;
use tokio::sync::mpsc;

type Written = (Writer, Receiver<GenEvent>);

fn writer(include_usage: bool) -> (mpsc::Sender<GenEvent>, Written) {
    let (sender, events) = mpsc::channel(8);
    let answer = Answer {
        kind: Kind::Chat,
        session: "5e55".into(),
        model: "m".into(),
        created: 0,
        logprobs: false,
        token_ids: false,
        include_usage,
    };
    (sender, (Writer::new(answer, 3), events))
}

fn token(index: u64, text: &str) -> GenEvent {
    GenEvent::Token {
        index,
        token: 7,
        text: text.into(),
        bytes: text.into(),
        logprob: -0.1,
        top: Vec::new(),
    }
}

async fn all((mut writer, mut received): Written) -> Vec<String> {
    let mut events = Vec::new();
    while let Some(bytes) = writer.next(&mut received, SILENCE).await {
        events.push(String::from_utf8(bytes.to_vec()).unwrap());
    }
    events
}

fn data(event: &str) -> Value {
    let (_, data) = event.split_once("data: ").unwrap();
    serde_json::from_str(data).unwrap()
}

#[tokio::test]
async fn a_stream_opens_numbers_its_tokens_closes_and_says_done() {
    let (sender, writer) = writer(true);
    sender.send(token(0, "Hel")).await.unwrap();
    sender.send(token(1, "lo")).await.unwrap();
    let done = GenEvent::Done {
        finish: FinishReason::Length,
        completion_tokens: 2,
        text_tail: "!".into(),
    };
    sender.send(done).await.unwrap();
    let events = all(writer).await;
    assert_eq!(events.len(), 6, "{events:?}");
    assert_eq!(data(&events[0])["choices"][0]["delta"]["role"], "assistant");
    assert!(events[1].starts_with("id: 5e55:0\n"), "{}", events[1]);
    assert!(events[2].starts_with("id: 5e55:1\n"), "{}", events[2]);
    assert_eq!(data(&events[3])["choices"][0]["delta"]["content"], "!");
    assert_eq!(data(&events[3])["choices"][0]["finish_reason"], "length");
    assert_eq!(data(&events[4])["usage"]["total_tokens"], 5);
    assert_eq!(events[5], "data: [DONE]\n\n");
}

#[tokio::test]
async fn a_stream_that_goes_on_has_no_second_opening_and_counts_on() {
    let (sender, (mut writer, events)) = writer(false);
    writer.skip(17);
    assert_eq!(writer.offset, 17);
    sender.send(token(4, "lo")).await.unwrap();
    drop(sender);
    let events = all((writer, events)).await;
    assert!(events[0].starts_with("id: 5e55:4\n"), "{}", events[0]);
}

#[tokio::test]
async fn a_failure_in_mid_stream_is_an_error_event_with_code_and_hint() {
    let (sender, writer) = writer(false);
    sender.send(token(0, "Hel")).await.unwrap();
    let failed = GenEvent::Failed {
        kind: ErrorKind::Unavailable,
        code: "peer_lost".into(),
        message: "a peer left".into(),
        hint: "try again".into(),
        replicas: Vec::new(),
    };
    sender.send(failed).await.unwrap();
    let events = all(writer).await;
    let error = data(&events[2]);
    assert_eq!(error["error"]["code"], "peer_lost");
    assert_eq!(error["error"]["hint"], "try again");
    assert_eq!(events[3], "data: [DONE]\n\n");
}

#[tokio::test]
async fn a_session_that_vanishes_ends_the_stream_with_an_error() {
    let (sender, writer) = writer(false);
    drop(sender);
    let events = all(writer).await;
    assert_eq!(data(&events[1])["error"]["code"], "session_lost");
}

#[tokio::test]
async fn a_silent_stream_says_that_it_is_still_there() {
    let (_sender, (mut writer, mut events)) = writer(false);
    writer.next(&mut events, Duration::ZERO).await.unwrap();
    let bytes = writer.next(&mut events, Duration::ZERO).await.unwrap();
    assert_eq!(bytes, sse::keep_alive());
}
