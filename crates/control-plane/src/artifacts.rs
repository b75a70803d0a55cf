//! What executions of jobs leave behind: their list, and each file. Azure has no such operations.
//!
//! Files are where the execution's volume `CoveArtifacts` is; whoever has it answers through [`Artifacts`].
//!
//! **Invariant:** a file is sent as bytes of no type, so no browser runs what a container wrote.

use std::{fmt::Debug, fs::File, io, sync::Arc};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use cove_arm::{ArmError, list};
use cove_model::{Execution, RevisionKey, VolumeKind};
use futures_util::{Stream, future::BoxFuture};
use http::{HeaderValue, Method, header};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt as _, sync::OwnedSemaphorePermit};

use crate::{
    answer::{self, Answer, Refusal},
    call::Call,
    control_plane::ControlPlane,
    executions,
    jobs::{self, JOB},
    route::Route,
};

/// Directories above a file, and the file.
pub const ARTIFACT_DEPTH_MAX: usize = 16;

/// Bytes that are read and sent together.
const PIECE_BYTES: usize = 64 * 1024;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// Its path in the volume: `out/model.bin`.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was written last.
    pub modified_at: Timestamp,
}

/// The files of an execution.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArtifactList {
    /// By path.
    pub files: Vec<Artifact>,
    /// There are more than are listed.
    pub is_cut: bool,
}

/// Who has the files.
pub trait Artifacts: Send + Sync + Debug + 'static {
    /// The files of an execution; `None` when its artifacts are not kept any more, or not there yet.
    fn list(&self, execution: &RevisionKey) -> BoxFuture<'static, io::Result<Option<ArtifactList>>>;

    /// One regular file, open to be read, and its size.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput`, with words, when there is something else than a file or a link on the way.
    fn open(&self, execution: &RevisionKey, path: &str) -> BoxFuture<'static, io::Result<(File, u64)>>;
}

pub(crate) fn routes() -> Vec<Route> {
    let all = format!("{JOB}/executions/{{execution}}/artifacts");
    let mut routes = vec![Route::arm(Method::GET, all.as_str(), list_all)];
    let mut pattern = all;
    for depth in 0..ARTIFACT_DEPTH_MAX {
        pattern.push_str(&format!("/{{path{depth}}}"));
        routes.push(Route::arm(Method::GET, pattern.as_str(), get));
    }
    routes
}

/// The execution of the path, which has artifacts, and who has them.
fn require(plane: &ControlPlane, call: &Call) -> Result<(Execution, Arc<dyn Artifacts>), Refusal> {
    let row = jobs::require(plane, call)?;
    let execution = executions::require(plane, call, &row)?;
    let has = execution.template.volumes.iter().any(|volume| matches!(volume.kind, VolumeKind::Artifacts(_)));
    let artifacts = plane.artifacts().filter(|_| has).ok_or_else(|| {
        let message = format!(
            "Execution '{}' keeps no artifacts: its template has no volume of type 'CoveArtifacts'.",
            execution.name
        );
        ArmError::new(404, "ArtifactNotFound", message)
    })?;
    Ok((execution, artifacts))
}

async fn list_all(plane: ControlPlane, call: Call) -> Answer {
    let (execution, artifacts) = require(&plane, &call)?;
    let found = artifacts.list(&execution.key()).await;
    let found = found.map_err(|error| Refusal::Broken(format!("artifacts of `{}`: {error}", execution.name)))?;
    let found = match found {
        Some(found) => found,
        None if !execution.status.is_final() => ArtifactList::default(),
        None => {
            let message = format!(
                "The artifacts of execution '{}' are not kept any more: the volume's coveKeepExecutions says of how many executions they are.",
                execution.name
            );
            return Err(ArmError::new(404, "ArtifactNotFound", message).into());
        }
    };
    let id = format!("{}/executions/{}/artifacts", execution.job, execution.name);
    let item = |file: &Artifact| {
        json!({
            "id": format!("{id}/{}", file.path),
            "name": file.path,
            "type": "Microsoft.App/jobs/executions/artifacts",
            "properties": { "sizeBytes": file.bytes, "lastModified": file.modified_at.to_string() },
        })
    };
    let mut value = list::render(found.files.iter().map(item).collect(), None);
    if found.is_cut {
        value["coveIsCut"] = Value::Bool(true);
    }
    Ok(answer::json(200, &value))
}

async fn get(plane: ControlPlane, call: Call) -> Answer {
    let (execution, artifacts) = require(&plane, &call)?;
    let parts = call.names.iter().filter(|(name, _)| name.starts_with("path")).map(|(_, value)| value.as_str());
    let path = parts.collect::<Vec<_>>().join("/");
    let shown: String = path.chars().take(200).collect();
    let (file, bytes) = artifacts.open(&execution.key(), &path).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            let message = format!("Execution '{}' has no artifact '{shown}'; list them first.", execution.name);
            ArmError::new(404, "ArtifactNotFound", message)
        }
        _ => ArmError::new(409, "PathNotUsable", format!("The artifact '{shown}' cannot be read: {error}.")),
    })?;
    let permit = Arc::clone(plane.open_streams())
        .try_acquire_owned()
        .map_err(|_| ArmError::too_many_requests("Too many streams are open; close some and try again."))?;
    let mut response = Response::new(Body::from_stream(pieces(plane, file, bytes, permit)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    Ok(response)
}

/// The file's bytes, as many as were promised; an error breaks the connection, so that nobody takes a part for the whole.
fn pieces(
    plane: ControlPlane,
    file: File,
    bytes: u64,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = io::Result<Bytes>> {
    let file = tokio::fs::File::from_std(file);
    futures_util::stream::unfold((plane, file, bytes, permit), |(plane, mut file, left, permit)| async move {
        if left == 0 {
            return None;
        }
        let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES))];
        let read = tokio::select! {
            () = plane.shutdown().cancelled() => Err(io::Error::other("the server is shutting down")),
            read = file.read(&mut piece) => read,
        };
        match read {
            Ok(0) => Some((Err(io::ErrorKind::UnexpectedEof.into()), (plane, file, 0, permit))),
            Ok(length) => {
                piece.truncate(length);
                Some((Ok(Bytes::from(piece)), (plane, file, left - length as u64, permit)))
            }
            Err(error) => Some((Err(error), (plane, file, 0, permit))),
        }
    })
}
