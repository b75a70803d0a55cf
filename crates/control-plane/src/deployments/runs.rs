//! Deployments that run now, and what becomes of those that a stop of the server cut off.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cove_arm::ArmError;
use cove_model::ResourceId;
use cove_store::{Provisioning, StoreError};
use tokio_util::sync::CancellationToken;

use super::{
    KIND,
    record::{Operation, Record},
    write::end,
};
use crate::control_plane::ControlPlane;

/// The deployments that run on one stage.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    live: Mutex<BTreeMap<String, Arc<Run>>>,
    journal: Mutex<Vec<Touched>>,
}

/// A resource that a rehearsal wrote or deleted.
#[derive(Clone, Debug)]
pub(crate) struct Touched {
    pub(crate) id: String,
    pub(crate) api_version: String,
    /// Symbolic name in the template.
    pub(crate) symbolic: Option<String>,
    /// The deployment, the whole one or a module of it.
    pub(crate) deployment: String,
}

/// One deployment at work.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// Ends it as canceled.
    pub(crate) cancel: CancellationToken,
    operations: Mutex<Vec<Operation>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Runs {
    /// Notes that a deployment runs.
    pub(crate) fn start(&self, id: &ResourceId) -> Arc<Run> {
        let run = Arc::new(Run::default());
        lock(&self.live).insert(id.key().to_owned(), Arc::clone(&run));
        run
    }

    /// Notes that it has ended.
    pub(crate) fn end(&self, id: &ResourceId, run: &Arc<Run>) {
        let mut live = lock(&self.live);
        if live.get(id.key()).is_some_and(|known| Arc::ptr_eq(known, run)) {
            live.remove(id.key());
        }
    }

    /// The run of a deployment.
    pub(crate) fn of(&self, id: &ResourceId) -> Option<Arc<Run>> {
        lock(&self.live).get(id.key()).map(Arc::clone)
    }

    /// Notes what a rehearsal touches.
    pub(crate) fn touch(&self, touched: Touched) {
        lock(&self.journal).push(touched);
    }

    /// What the rehearsal touched, in order.
    pub(crate) fn journal(&self) -> Vec<Touched> {
        lock(&self.journal).clone()
    }
}

impl Run {
    /// What was done so far, one entry per resource.
    pub(crate) fn operations(&self) -> Vec<Operation> {
        lock(&self.operations).clone()
    }

    /// Notes the begin of one operation, or its end in the place of its begin.
    pub(crate) fn note(&self, operation: Operation) {
        let mut operations = lock(&self.operations);
        match operations.iter_mut().find(|known| known.id == operation.id) {
            Some(known) => *known = operation,
            None => operations.push(operation),
        }
    }
}

/// Ends deployments that ran when the server stopped, and says which of their resources exist.
///
/// # Errors
/// When the store fails.
pub(crate) async fn recover(plane: &ControlPlane) -> Result<(), StoreError> {
    for row in plane.store().resources(KIND, None)? {
        if plane.runs().of(&row.id).is_some() {
            continue;
        }
        if row.provisioning != Provisioning::InProgress {
            // its operation may have been cut off between two transactions
            let failure = row.failure.clone();
            if row.provisioning != Provisioning::Canceled {
                plane.store().finish(row.id, row.generation, failure, plane.clock().now()).await?;
            }
            continue;
        }
        let Ok(mut record) = Record::of(&row) else { continue };
        let error = interrupted(plane, &record)?;
        record.error = Some(error.inner_json());
        let (code, message) = (error.code.clone(), error.message.clone());
        tracing::warn!(deployment = %row.id, "a deployment was cut off by a stop of the server");
        end(plane, &row, record, Provisioning::Failed, Some((code, message))).await?;
    }
    Ok(())
}

fn interrupted(plane: &ControlPlane, record: &Record) -> Result<ArmError, StoreError> {
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for planned in &record.planned {
        let row = match ResourceId::parse(&planned.id) {
            Ok(id) => plane.store().resource(&id)?,
            Err(_) => None,
        };
        if row.is_some() { there.push(planned.shown()) } else { missing.push(planned.shown()) }
    }
    let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let message = format!(
        "The server stopped while the deployment ran. Of its resources exist: {}. Not there yet: {}. It is safe to run the \
         deployment again: resources that are as the template says stay untouched.",
        list(&there),
        list(&missing)
    );
    Ok(ArmError::new(409, "DeploymentInterrupted", message))
}
