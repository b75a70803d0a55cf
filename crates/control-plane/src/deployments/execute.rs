//! Runs a plan: what nothing waits for any more is begun, a bounded number at once; what fails stops what depends on it.
//!
//! **Invariant:** a resource is begun when all that it depends on has succeeded, was skipped or is only read.
//! **Invariant:** in mode `Complete` nothing is deleted unless everything succeeded.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use cove_arm::ArmError;
use cove_model::ResourceId;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http::Method;
use serde_json::{Value, json};

use super::{
    KIND,
    agent::{Agent, Stopped},
    place::Place,
    record::{Operation, Planned, Record},
    request::{Mode, Request},
    runs::{Run, Touched},
};
use crate::environments;

/// Resources of one deployment that are worked on at once.
const AT_ONCE: usize = 16;

/// A deployment to carry out.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) agent: Agent,
    pub(crate) place: Place,
    pub(crate) request: Request,
    pub(crate) run: Arc<Run>,
}

/// How a deployment ended.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) error: Option<ArmError>,
    pub(crate) is_canceled: bool,
    /// The server stops; nothing more is to be written.
    pub(crate) is_cut_off: bool,
    pub(crate) outputs: Value,
    pub(crate) output_resources: Vec<String>,
}

impl Outcome {
    /// An end without success.
    pub(crate) fn failed(error: ArmError) -> Self {
        Self { error: Some(error), outputs: json!({}), ..Self::default() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Begun,
    Done,
    /// It failed, or something that it depends on did.
    Lost,
}

/// Who waits for whom, while a plan runs.
struct Graph {
    states: Vec<State>,
    /// How many a resource still waits for.
    missing: Vec<usize>,
    dependents: Vec<Vec<usize>>,
    ready: VecDeque<usize>,
}

impl Graph {
    fn of(plan: &cove_template::Plan) -> Self {
        let count = plan.resources.len();
        let mut graph = Self {
            states: vec![State::Waiting; count],
            missing: vec![0; count],
            dependents: vec![Vec::new(); count],
            ready: VecDeque::new(),
        };
        for (index, planned) in plan.resources.iter().enumerate() {
            if !planned.condition || planned.existing {
                graph.states[index] = State::Done;
                continue;
            }
            for other in &planned.depends_on {
                let waits = plan.resources.get(*other).is_some_and(|other| other.condition && !other.existing);
                if waits {
                    graph.missing[index] += 1;
                    graph.dependents[*other].push(index);
                }
            }
        }
        let ready = (0..count).filter(|index| graph.states[*index] == State::Waiting && graph.missing[*index] == 0);
        graph.ready = ready.collect();
        graph
    }

    fn done(&mut self, index: usize) {
        self.states[index] = State::Done;
        for dependent in self.dependents[index].clone() {
            self.missing[dependent] -= 1;
            if self.missing[dependent] == 0 && self.states[dependent] == State::Waiting {
                self.ready.push_back(dependent);
            }
        }
    }

    fn lost(&mut self, index: usize) {
        let mut lost = vec![index];
        while let Some(index) = lost.pop() {
            if self.states[index] != State::Lost {
                self.states[index] = State::Lost;
                lost.extend(&self.dependents[index]);
            }
        }
    }

    fn next(&mut self) -> Option<usize> {
        while let Some(index) = self.ready.pop_front() {
            if self.states[index] == State::Waiting {
                self.states[index] = State::Begun;
                return Some(index);
            }
        }
        None
    }
}

impl Work {
    /// Carries the deployment out. A module's deployment is run inside, so the future has no size of its own.
    pub(crate) fn run(&self) -> BoxFuture<'_, Outcome> {
        Box::pin(self.run_all())
    }

    async fn run_all(&self) -> Outcome {
        let mut graph = Graph::of(&self.request.plan);
        let mut errors = Vec::new();
        let (mut is_canceled, mut is_cut_off) = (false, false);
        let mut begun = FuturesUnordered::new();
        loop {
            let may_begin = !is_canceled && !is_cut_off && !self.run.cancel.is_cancelled();
            while may_begin && begun.len() < AT_ONCE {
                let Some(index) = graph.next() else { break };
                begun.push(async move { (index, self.write(index).await) });
            }
            let Some((index, ended)) = begun.next().await else { break };
            match ended {
                Ok(()) => graph.done(index),
                Err(Stopped::Failed(error)) => {
                    graph.lost(index);
                    errors.push((index, error));
                }
                Err(Stopped::Canceled) => is_canceled = true,
                Err(Stopped::Shutdown) => is_cut_off = true,
            }
        }
        drop(begun);
        errors.sort_by_key(|(index, _)| *index);
        let errors: Vec<ArmError> = errors.into_iter().map(|(_, error)| error).collect();
        let mut outcome = Outcome { outputs: json!({}), is_cut_off, ..Outcome::default() };
        outcome.output_resources = self.output_resources(&graph);
        if is_cut_off {
            return outcome;
        }
        if is_canceled || self.run.cancel.is_cancelled() {
            outcome.is_canceled = true;
            outcome.error = Some(self.canceled(&graph));
        } else if errors.is_empty() {
            self.complete(&mut outcome).await;
        } else {
            outcome.error = Some(self.failed(&graph, errors));
        }
        outcome
    }

    /// What is left to do when every resource succeeded: deletions of mode `Complete`, outputs.
    async fn complete(&self, outcome: &mut Outcome) {
        if self.request.mode == Mode::Complete
            && let Err(errors) = self.delete_others(&outcome.output_resources).await
        {
            outcome.error = Some(failure(&self.place.id, errors, ""));
            return;
        }
        let operation = Operation::begin("EvaluateDeploymentOutput", None, self.agent.plane.clock().now());
        let plan = Arc::clone(&self.request.plan);
        let outputs = self.agent.evaluate(move |known| plan.evaluate_outputs(known)).await;
        let error = outputs.as_ref().err();
        let status = error.map_or(200, |error| error.status);
        self.run.note(operation.ended(status, error, self.agent.plane.clock().now()));
        match outputs {
            Ok(outputs) => outcome.outputs = outputs,
            Err(error) => {
                let mut all = ArmError::new(
                    400,
                    "DeploymentOutputEvaluationFailed",
                    format!(
                        "All resources were deployed, but outputs of the template could not be evaluated. {}",
                        error.message
                    ),
                );
                all.target = Some(self.place.id.to_string());
                all.details = if error.details.is_empty() { vec![error] } else { error.details };
                outcome.error = Some(all);
            }
        }
    }

    /// Writes one resource and waits until it is there.
    async fn write(&self, index: usize) -> Result<(), Stopped> {
        let planned = &self.request.plan.resources[index];
        let operation = Operation::begin("Create", Some(Planned::of(planned)), self.agent.plane.clock().now());
        self.run.note(operation.clone());
        let written = self.write_now(index).await;
        let now = || self.agent.plane.clock().now();
        match written {
            Ok(status) => {
                self.run.note(operation.ended(status, None, now()));
                Ok(())
            }
            Err(Stopped::Failed(error)) => {
                let error = placed(error, planned);
                self.run.note(operation.ended(error.status, Some(&error), now()));
                Err(Stopped::Failed(error))
            }
            Err(Stopped::Canceled) => {
                let mut operation = operation.ended(409, None, now());
                operation.state = "Canceled".into();
                self.run.note(operation);
                Err(Stopped::Canceled)
            }
            Err(Stopped::Shutdown) => Err(Stopped::Shutdown),
        }
    }

    async fn write_now(&self, index: usize) -> Result<u16, Stopped> {
        let planned = &self.request.plan.resources[index];
        let plan = Arc::clone(&self.request.plan);
        let body = self.agent.evaluate(move |known| plan.evaluate_body(index, known)).await?;
        let is_module = planned.is_deployment();
        if self.agent.plane.is_rehearsal() && !is_module {
            self.touch(&planned.id, &planned.api_version, planned.symbolic.clone());
        }
        let reply = self.agent.send(Method::PUT, &planned.id, &planned.api_version, Some(body.to_string())).await?;
        let Some(operation) = &reply.operation else { return Ok(reply.status) };
        let ended = self.agent.wait(operation, &self.run.cancel).await?;
        let is_there = self.agent.plane.store().resource(&ended.resource).is_ok_and(|row| row.is_some());
        if !is_there {
            let message = "It was deleted while the deployment was creating it.";
            return Err(ArmError::conflict("ResourceDeletedDuringDeployment", message).into());
        }
        Ok(reply.status)
    }

    fn touch(&self, id: &str, api_version: &str, symbolic: Option<String>) {
        self.agent.plane.runs().touch(Touched {
            id: id.to_owned(),
            api_version: api_version.to_owned(),
            symbolic,
            deployment: self.place.id.to_string(),
        });
    }

    /// Ids of what was written, with what modules wrote.
    fn output_resources(&self, graph: &Graph) -> Vec<String> {
        let mut ids = Vec::new();
        for (planned, state) in self.request.plan.resources.iter().zip(&graph.states) {
            if *state != State::Done || !planned.condition || planned.existing {
                continue;
            }
            if !planned.is_deployment() {
                ids.push(planned.id.clone());
                continue;
            }
            let module = ResourceId::parse(&planned.id).ok();
            let row = module.and_then(|id| self.agent.plane.store().resource(&id).ok().flatten());
            let record = row.and_then(|row| Record::of(&row).ok());
            ids.extend(record.into_iter().flat_map(|record| record.output_resources));
        }
        ids
    }

    /// Deletes what the group has and the template lacks, environments last. Children stay with their parents.
    async fn delete_others(&self, kept: &[String]) -> Result<(), Vec<ArmError>> {
        let planned = self.request.plan.resources.iter().filter(|planned| planned.existing);
        let kept: BTreeSet<String> =
            kept.iter().chain(planned.map(|planned| &planned.id)).map(|id| id.to_ascii_lowercase()).collect();
        let rows = self.agent.plane.store().resources_below(&self.place.scope).unwrap_or_default();
        let is_other = |id: &ResourceId| {
            id.parent().is_none()
                && id.scope().as_ref() == Some(&self.place.scope)
                && !id.kind().eq_ignore_ascii_case(KIND)
                && !kept.contains(id.key())
        };
        let others: Vec<ResourceId> = rows.into_iter().map(|row| row.id).filter(is_other).collect();
        let (environments, others): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|id| id.kind().eq_ignore_ascii_case(environments::KIND));
        let mut errors = Vec::new();
        for ids in [others, environments] {
            let (mut waiting, mut begun) = (ids.into_iter(), FuturesUnordered::new());
            loop {
                while begun.len() < AT_ONCE {
                    let Some(id) = waiting.next() else { break };
                    begun.push(async move { self.delete(&id).await });
                }
                let Some(ended) = begun.next().await else { break };
                errors.extend(ended.err());
            }
            if !errors.is_empty() {
                return Err(errors);
            }
        }
        Ok(())
    }

    async fn delete(&self, id: &ResourceId) -> Result<(), ArmError> {
        let target = Planned {
            path: String::new(),
            id: id.to_string(),
            kind: id.kind(),
            name: id.name().to_owned(),
            location: None,
        };
        let operation = Operation::begin("Delete", Some(target), self.agent.plane.clock().now());
        self.run.note(operation.clone());
        if self.agent.plane.is_rehearsal() {
            self.touch(id.as_str(), "", None);
        }
        let deleted = async {
            let reply = self.agent.send(Method::DELETE, id.as_str(), "", None).await?;
            if let Some(operation) = &reply.operation {
                self.agent.wait(operation, &self.run.cancel).await?;
            }
            Ok(())
        };
        let ended = match deleted.await {
            Ok(()) => Ok(()),
            Err(Stopped::Failed(error)) => Err(error),
            Err(Stopped::Canceled) => Err(ArmError::conflict("DeploymentCanceled", "The deployment was canceled.")),
            Err(Stopped::Shutdown) => Err(ArmError::new(503, "ServiceUnavailable", "The server is shutting down.")),
        };
        let ended = ended.map_err(|error| error.at(id.as_str()));
        let error = ended.as_ref().err();
        let status = error.map_or(200, |error| error.status);
        self.run.note(operation.ended(status, error, self.agent.plane.clock().now()));
        ended
    }

    fn canceled(&self, graph: &Graph) -> ArmError {
        let message = format!("The deployment was canceled.{}", self.what_exists(graph));
        ArmError::conflict("DeploymentCanceled", message).at(self.place.id.as_str())
    }

    fn failed(&self, graph: &Graph, errors: Vec<ArmError>) -> ArmError {
        failure(&self.place.id, errors, &self.what_exists(graph))
    }

    /// ` Deployed: 'env' (…). Not deployed: 'web' (…).`
    fn what_exists(&self, graph: &Graph) -> String {
        const SHOWN_MAX: usize = 20;
        let named = |wanted: bool| {
            let all = self.request.plan.resources.iter().zip(&graph.states);
            let these = all.filter(|(planned, state)| {
                planned.condition && !planned.existing && (**state == State::Done) == wanted
            });
            let names: Vec<String> = these.map(|(planned, _)| Planned::of(planned).shown()).collect();
            match names.len() {
                0 => "none".to_owned(),
                count if count > SHOWN_MAX => {
                    format!("{} and {} more", names[..SHOWN_MAX].join(", "), count - SHOWN_MAX)
                }
                _ => names.join(", "),
            }
        };
        format!(" Deployed: {}. Not deployed: {}.", named(true), named(false))
    }
}

/// ARM's error of a deployment, with one detail per resource.
fn failure(id: &ResourceId, errors: Vec<ArmError>, what_exists: &str) -> ArmError {
    let message = format!(
        "At least one resource deployment operation failed. Please list deployment operations for details.{what_exists}"
    );
    let mut all = ArmError::conflict("DeploymentFailed", message).at(id.as_str());
    all.details = errors;
    all
}

/// The error of a resource with the place in the template before its text and the resource's id as its target.
fn placed(error: ArmError, planned: &cove_template::PlannedResource) -> ArmError {
    let below = |target: &str| match target {
        "" => planned.path.clone(),
        target if target.starts_with('/') => planned.path.clone(),
        // mistakes of the template language name their whole path
        target if target.starts_with(&planned.path) => target.to_owned(),
        target => format!("{}.{target}", planned.path),
    };
    let path = below(error.target.as_deref().unwrap_or(""));
    let message = if error.message.starts_with("At '") {
        error.message
    } else {
        // some errors begin with their own target
        let target = error.target.as_deref().unwrap_or("");
        let bare = error.message.strip_prefix(target).and_then(|rest| rest.strip_prefix(": "));
        format!("At '{path}': {}", bare.unwrap_or(&error.message))
    };
    let mut result = ArmError::new(error.status, &error.code, message).at(planned.id.as_str());
    result.details = error.details;
    if !planned.is_deployment() {
        for detail in &mut result.details {
            detail.target = Some(below(detail.target.as_deref().unwrap_or("")));
        }
    }
    result
}
