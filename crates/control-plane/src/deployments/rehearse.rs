//! A template tried out: the deployment itself, run on a copy of the store, as a check or to see what would change.
//!
//! Handlers, store and plan are the real ones; only the controller is missing, so what it would bring about is taken for
//! done. What a rehearsal cannot know are failures of running: an image that cannot be pulled, a probe that fails.
//!
//! **Invariant:** a rehearsal changes nothing.

use std::sync::Arc;

use cove_arm::ArmError;
use tokio::sync::Semaphore;

use super::{
    agent::Agent,
    execute::{Outcome, Work},
    place::Place,
    record::Record,
    request::{Request, sentence},
    runs::Run,
};
use crate::{
    answer::{self, Answer, Refusal},
    call::Call,
    control_plane::ControlPlane,
};

/// Rehearsals at once; each is a copy of the store. More wait, at most as long as a request may take.
static REHEARSALS: Semaphore = Semaphore::const_new(2);

/// A rehearsal that has ended.
pub(crate) struct Rehearsed {
    /// The API on the copy, after the deployment.
    pub(crate) plane: ControlPlane,
    pub(crate) outcome: Outcome,
}

/// Runs a deployment on a copy of the store.
///
/// # Errors
/// When the copy cannot be made; how the deployment ends is in the outcome.
pub(crate) async fn rehearse(agent: &Agent, place: &Place, request: &Request) -> Result<Rehearsed, Refusal> {
    let permit = REHEARSALS.acquire().await;
    let _permit = permit.map_err(|_| Refusal::Broken("the rehearsals are closed".into()))?;
    let plane = agent.plane.rehearsal().await?;
    let work =
        Work { agent: agent.on(&plane), place: place.clone(), request: request.clone(), run: Arc::<Run>::default() };
    let outcome = work.run().await;
    Ok(Rehearsed { plane, outcome })
}

/// Checks a deployment before anything of it is written.
///
/// # Errors
/// 400 `InvalidTemplateDeployment` with everything that is wrong.
pub(crate) async fn check(agent: &Agent, place: &Place, request: &Request) -> Result<Rehearsed, Refusal> {
    let rehearsed = rehearse(agent, place, request).await?;
    match &rehearsed.outcome.error {
        Some(error) => Err(refusal(place, &agent.correlation, error).into()),
        None if rehearsed.outcome.is_cut_off => {
            Err(ArmError::new(503, "ServiceUnavailable", "The server is shutting down; try again later.").into())
        }
        None => Ok(rehearsed),
    }
}

/// ARM's error of a template that would fail.
fn refusal(place: &Place, tracking: &str, error: &ArmError) -> ArmError {
    let leaves =
        |errors: &[ArmError]| errors.iter().map(|error| sentence(&error.message)).collect::<Vec<_>>().join(" ");
    let reasons = if error.details.is_empty() { sentence(&error.message) } else { leaves(&error.details) };
    let message = format!(
        "The template deployment '{}' is not valid according to the validation procedure. The tracking id is '{tracking}'. \
         Nothing was changed. {reasons}",
        place.id.name()
    );
    let mut all = ArmError::new(400, "InvalidTemplateDeployment", message);
    all.details = error.details.clone();
    all
}

/// `validate`: what a PUT of the same body would say at once.
pub(crate) async fn validate(plane: ControlPlane, call: Call) -> Answer {
    let place = Place::to_deploy(&plane, &call)?;
    let request = Request::read(&plane, &call, &place).await?;
    let agent = Agent::of(&plane, &call);
    if request.is_checked_by_providers {
        check(&agent, &place, &request).await?;
    }
    let record = Record::begin(&request, &agent.correlation, "", plane.clock().now());
    Ok(answer::json(200, &record.render_valid(&place.id)))
}
