//! From a checked request to its answer, whole or as a stream, whatever endpoint it came by.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use accel_actors::{
    ErrorKind, FinishReason, GenEvent, GenerateRequest, Generation, Input, NodeHandle, Resumption,
};
use accel_inference::SamplingParams;
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::{HttpResponse, HttpResponseBuilder};
use bytes::Bytes;
use futures::stream;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use super::error::ApiError;
use super::form::Form;
use super::openai::request::Options;
use super::openai::response::{Answer, Finish, Kind, Piece, Scored, Usage};
use super::sse;

/// How long the response's head waits for the first token: a failure before that has its own
/// status, and the route is known.
const FIRST_EVENT: Duration = Duration::from_secs(10);
/// The same where a client has come back: it has other nodes to ask, should this one hang.
const FIRST_AGAIN: Duration = Duration::from_secs(3);
/// How long a stream is silent before it says that it is still there.
const SILENCE: Duration = Duration::from_secs(2);
const SESSION_HEADER: &str = "x-accel-session";
const ROUTE_HEADER: &str = "x-accel-route";
const REPLICAS_HEADER: &str = "x-accel-replicas";

/// Asks the node and answers. Dropping the response's body, or this future, cancels the session.
pub async fn respond(
    node: &NodeHandle,
    kind: Kind,
    input: Input,
    options: Options,
) -> Result<HttpResponse, ApiError> {
    let form = Form {
        kind,
        created: now(),
        logprobs: options.logprobs.is_some(),
        token_ids: options.return_token_ids,
        include_usage: options.include_usage,
    };
    let request = GenerateRequest {
        model: options.model.clone(),
        input,
        sampling: sampling(&options),
        max_tokens: options.max_tokens,
        stop: options.stop.clone(),
        top_logprobs: options.logprobs.unwrap_or(0),
        fault_tolerance: options.fault_tolerance,
        // Nobody comes back for an answer in one piece: its client does not know the session.
        form: options.stream.then(|| form.to_text()),
    };
    let generation = node.generate(request).await?;
    let answer = form.answer(generation.id.clone(), generation.model.clone());
    if options.stream {
        let writer = Writer::new(answer, generation.prompt_tokens);
        streamed(node, writer, generation.events, FIRST_EVENT).await
    } else {
        whole(node, answer, generation).await
    }
}

/// The rest of an answer, from the token after `after` on; all of it when that is absent.
pub async fn go_on(
    node: &NodeHandle,
    session: &str,
    after: Option<u64>,
) -> Result<HttpResponse, ApiError> {
    let Resumption {
        form,
        seen_chars,
        generation,
    } = node.resume(session, after).await?;
    let form = Form::read(&form).ok_or_else(|| unknown_form(session))?;
    let answer = form.answer(generation.id.clone(), generation.model.clone());
    let mut writer = Writer::new(answer, generation.prompt_tokens);
    if after.is_some() {
        writer.skip(seen_chars);
    }
    streamed(node, writer, generation.events, FIRST_AGAIN).await
}

fn unknown_form(session: &str) -> ApiError {
    let message = format!("the stream of session {session} was begun by another version of accel");
    ApiError::new(StatusCode::CONFLICT, "session_not_resumable", message)
        .with_hint("send the request again")
}

fn sampling(options: &Options) -> SamplingParams {
    SamplingParams {
        temperature: options.temperature,
        top_p: options.top_p,
        top_k: options.top_k,
        min_p: options.min_p,
        seed: options.seed.unwrap_or_else(rand::random),
        ..SamplingParams::default()
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

async fn whole(
    node: &NodeHandle,
    answer: Answer,
    mut generation: Generation,
) -> Result<HttpResponse, ApiError> {
    let mut pieces = Vec::new();
    let (finish, completion, tail) = loop {
        match step(generation.events.recv().await) {
            Step::Token(_, piece) => pieces.push(piece),
            Step::Done(finish, completion, tail) => break (finish, completion, tail),
            Step::Failed(error) => return Err(error),
        }
    };
    let usage = Usage {
        prompt: generation.prompt_tokens as u64,
        completion,
    };
    let body = answer.whole(&pieces, &tail, finish, usage);
    Ok(head(node, &answer.session).json(body))
}

async fn streamed(
    node: &NodeHandle,
    mut writer: Writer,
    mut events: Receiver<GenEvent>,
    patience: Duration,
) -> Result<HttpResponse, ApiError> {
    let first = timeout(patience, events.recv()).await;
    let first = first.ok().map(step);
    if let Some(Step::Failed(error)) = first {
        return Err(error);
    }
    let mut response = head(node, &writer.answer.session);
    response
        .insert_header((CONTENT_TYPE, "text/event-stream; charset=utf-8"))
        .insert_header((CACHE_CONTROL, "no-cache"));
    if let Some(step) = first {
        writer.take(step);
    }
    let body = stream::unfold((writer, events), |(mut writer, mut events)| async move {
        let bytes = writer.next(&mut events, SILENCE).await?;
        Some((Ok::<Bytes, Infallible>(bytes), (writer, events)))
    });
    Ok(response.streaming(body))
}

/// The head of an answer: which session computes it and, once that is known, where, and who else
/// keeps its journal.
fn head(node: &NodeHandle, session: &str) -> HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    response.insert_header((SESSION_HEADER, session));
    let Some(view) = node.session(session) else {
        return response;
    };
    let known = [
        (ROUTE_HEADER, view.route_header()),
        (REPLICAS_HEADER, view.replicas_header()),
    ];
    for (name, value) in known {
        if !value.is_empty() {
            response.insert_header((name, value));
        }
    }
    response
}

/// The events of a generation as the bytes of a stream.
struct Writer {
    answer: Answer,
    usage: Usage,
    ready: VecDeque<Bytes>,
    /// Characters of text so far.
    offset: usize,
    ended: bool,
}

impl Writer {
    fn new(answer: Answer, prompt_tokens: usize) -> Self {
        let opening = answer.opening().map(|chunk| sse::event(None, &chunk));
        Self {
            answer,
            usage: Usage {
                prompt: prompt_tokens as u64,
                completion: 0,
            },
            ready: opening.into_iter().collect(),
            offset: 0,
            ended: false,
        }
    }

    /// The client has the opening, and so many characters.
    fn skip(&mut self, chars: usize) {
        self.ready.clear();
        self.offset = chars;
    }

    async fn next(&mut self, events: &mut Receiver<GenEvent>, silence: Duration) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(bytes);
            }
            if self.ended {
                return None;
            }
            match timeout(silence, events.recv()).await {
                Ok(event) => self.take(step(event)),
                Err(_) => return Some(sse::keep_alive()),
            }
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Token(index, piece) => {
                let id = format!("{}:{index}", self.answer.session);
                let chunk = self.answer.token(&piece, self.offset);
                self.offset += piece.text.chars().count();
                self.ready.push_back(sse::event(Some(&id), &chunk));
            }
            Step::Done(finish, completion, tail) => {
                self.usage.completion = completion;
                self.close(&tail, finish);
            }
            Step::Failed(error) => {
                self.ready.push_back(sse::event(None, &error.body()));
                self.end();
            }
        }
    }

    fn close(&mut self, tail: &str, finish: Finish) {
        let closing = self.answer.closing(tail, finish);
        self.ready.push_back(sse::event(None, &closing));
        if self.answer.include_usage {
            let usage = self.answer.usage(self.usage);
            self.ready.push_back(sse::event(None, &usage));
        }
        self.end();
    }

    fn end(&mut self) {
        self.ready.push_back(sse::text_event(None, sse::DONE));
        self.ended = true;
    }
}

/// An event of a generation, in the words of this API.
enum Step {
    /// A token's index and content.
    Token(u64, Piece),
    /// Why the answer ended, how many tokens it has, and the text that was held back.
    Done(Finish, u64, String),
    Failed(ApiError),
}

fn step(event: Option<GenEvent>) -> Step {
    match event {
        Some(GenEvent::Token {
            index,
            token,
            text,
            bytes,
            logprob,
            top,
        }) => {
            let alternatives = top.into_iter().map(|other| Scored {
                bytes: other.bytes,
                logprob: other.logprob,
            });
            let piece = Piece {
                id: token,
                text,
                scored: Scored { bytes, logprob },
                top: alternatives.collect(),
            };
            Step::Token(index, piece)
        }
        Some(GenEvent::Done {
            finish,
            completion_tokens,
            text_tail,
        }) => Step::Done(finish_of(finish), completion_tokens, text_tail),
        Some(GenEvent::Failed {
            kind,
            code,
            message,
            hint,
            replicas,
        }) => {
            let error = ApiError::of(kind, &code, message, hint);
            Step::Failed(error.with_replicas(replicas))
        }
        None => Step::Failed(lost()),
    }
}

/// The end of a generation without a last word.
fn lost() -> ApiError {
    ApiError::of(
        ErrorKind::Internal,
        "session_lost",
        "the session ended without an answer".into(),
        "send the request again; if it happens again, the log of the node says more".into(),
    )
}

fn finish_of(reason: FinishReason) -> Finish {
    match reason {
        FinishReason::Stop => Finish::Stop,
        FinishReason::Length => Finish::Length,
    }
}

#[cfg(test)]
mod tests;
