//! `/api/v1/models`: the models of this node and of its peers.
//!
//! Adding a large file takes a while. With `"stream": true` the answer is a stream of events
//! `{"done","total"}`, then one `{"model": …}` or `{"error": …}`.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use accel_actors::node::Progress;
use accel_actors::{ModelView, ModelsError, NodeHandle};
use actix_web::http::header::CONTENT_TYPE;
use actix_web::{HttpResponse, web};
use bytes::Bytes;
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::error::ApiError;
use super::openai::fields::Fields;
use super::{resource, sse};

/// The endpoints.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            resource("/api/v1/models")
                .route(web::get().to(list))
                .route(web::post().to(add)),
        )
        .service(
            resource("/api/v1/models/{model}/pin")
                .route(web::put().to(pin))
                .route(web::delete().to(unpin)),
        )
        .service(
            resource("/api/v1/models/{model:.+}")
                .route(web::get().to(show))
                .route(web::delete().to(remove)),
        );
}

async fn list(node: web::Data<NodeHandle>) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(json!({"models": node.models().await?})))
}

async fn show(
    node: web::Data<NodeHandle>,
    model: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(node.model_show(&model).await?))
}

async fn pin(
    node: web::Data<NodeHandle>,
    model: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(node.model_pin(&model, true).await?))
}

async fn unpin(
    node: web::Data<NodeHandle>,
    model: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(node.model_pin(&model, false).await?))
}

async fn remove(
    node: web::Data<NodeHandle>,
    model: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    node.model_remove(&model).await?;
    Ok(HttpResponse::Ok().json(json!({"removed": model.as_str()})))
}

/// What a model is added from.
enum Source {
    /// A file of this machine.
    Path(PathBuf),
    /// What peers offer, by CID or name.
    Swarm(String),
}

fn source(fields: &mut Fields) -> Result<Source, ApiError> {
    match (fields.text("path")?, fields.text("cid")?) {
        (Some(path), None) if Path::new(&path).is_absolute() => Ok(Source::Path(path.into())),
        (Some(_), None) => {
            let message = "`path` must be absolute: it is read on the machine of the node";
            Err(ApiError::param("path", message))
        }
        (None, Some(cid)) => Ok(Source::Swarm(cid)),
        _ => {
            let message = "either `path` or `cid` is required";
            Err(ApiError::param("path", message))
        }
    }
}

async fn add(
    node: web::Data<NodeHandle>,
    body: web::Json<Value>,
) -> Result<HttpResponse, ApiError> {
    let mut fields = Fields::new(body.into_inner())?;
    let source = source(&mut fields)?;
    let name = fields.text("name")?.filter(|name| !name.is_empty());
    let stream = fields.flag("stream")?;
    let mut adding = Adding::start(node, source, name);
    if stream {
        return Ok(HttpResponse::Ok()
            .insert_header((CONTENT_TYPE, "text/event-stream; charset=utf-8"))
            .streaming(adding.into_stream()));
    }
    let model = adding.finish().await?;
    Ok(HttpResponse::Ok().json(model))
}

/// A model on its way into the store. It goes on when the client leaves: the bytes are wanted.
struct Adding {
    progress: watch::Receiver<(u64, u64)>,
    task: JoinHandle<Result<ModelView, ModelsError>>,
}

impl Adding {
    fn start(node: web::Data<NodeHandle>, source: Source, name: Option<String>) -> Self {
        let (sender, progress) = watch::channel((0, 0));
        let report: Progress = Arc::new(move |done, total| {
            sender.send_replace((done, total));
        });
        let task = actix_web::rt::spawn(async move {
            match source {
                Source::Path(path) => node.model_add(path, name, report).await,
                Source::Swarm(cid) => node.model_pull(&cid, name, report).await,
            }
        });
        Self { progress, task }
    }

    async fn finish(&mut self) -> Result<ModelView, ApiError> {
        match (&mut self.task).await {
            Ok(result) => Ok(result?),
            Err(join) => Err(ModelsError::Internal(join.to_string()).into()),
        }
    }

    fn into_stream(self) -> impl stream::Stream<Item = Result<Bytes, Infallible>> {
        stream::unfold(Some(self), |state| async move {
            let mut adding = state?;
            if adding.progress.changed().await.is_ok() {
                let (done, total) = *adding.progress.borrow_and_update();
                let event = json!({"done": done, "total": total});
                return Some((Ok(sse::event(None, &event)), Some(adding)));
            }
            // The reporter is gone: the work is over.
            let last = match adding.finish().await {
                Ok(model) => json!({"model": model}),
                Err(error) => error.body(),
            };
            Some((Ok(sse::event(None, &last)), None))
        })
    }
}
