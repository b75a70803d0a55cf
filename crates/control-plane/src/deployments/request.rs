//! The body of a deployment: read, checked and expanded to a plan, with every mistake told at once.
//!
//! **Invariant:** a request that left this module has a plan without cycles; nothing was written yet.

use std::sync::Arc;

use bytes::Bytes;
use cove_arm::{ArmError, Errors};
use cove_template::{Plan, Scope, Template, TemplateError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::place::Place;
use crate::{answer::Refusal, call::Call, control_plane::ControlPlane};

/// What becomes of resources of the group that the template lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Mode {
    /// They stay.
    Incremental,
    /// They are deleted.
    Complete,
}

/// A deployment that may start.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Where the deployment's own record lives; only subscription scope has one.
    pub(crate) location: Option<String>,
    /// Tags of the deployment.
    pub(crate) tags: Option<Value>,
    pub(crate) mode: Mode,
    /// Whether each resource is checked before the first is written: not for `validationLevel: Template`.
    pub(crate) is_checked_by_providers: bool,
    /// The template as it came.
    pub(crate) text: Arc<Value>,
    pub(crate) hash: String,
    /// `{name: {type, value}}` without secure values.
    pub(crate) parameters: Value,
    pub(crate) plan: Arc<Plan>,
}

impl Request {
    /// Reads the body of a PUT, `validate` or `whatIf`.
    ///
    /// # Errors
    /// 400 with every mistake of body, parameters and template; 501 for what is not built.
    pub(crate) async fn read(plane: &ControlPlane, call: &Call, place: &Place) -> Result<Self, Refusal> {
        let bytes = call.body.clone();
        let is_group = place.group.is_some();
        let body = cove_template::parse_body(&bytes).map_err(|error| {
            ArmError::invalid_content(format!(
                "The request content was invalid and could not be deserialized: '{error}'."
            ))
        })?;
        let envelope = Envelope::read(&body, is_group)?;
        let scope = place.scope(plane, call, envelope.location.as_deref());
        let work = tokio::task::spawn_blocking(move || envelope.expand(&bytes, scope));
        Ok(work.await.map_err(|error| Refusal::Broken(format!("reading a template ended early: {error}")))??)
    }
}

/// The body without its template's meaning.
struct Envelope {
    location: Option<String>,
    tags: Option<Value>,
    mode: Mode,
    is_checked_by_providers: bool,
    template: Value,
    parameters: Value,
}

/// A member in any case.
fn member<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let found = value.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value).filter(|value| !value.is_null())
}

impl Envelope {
    fn read(body: &Value, is_group: bool) -> Result<Self, ArmError> {
        let mut errors = Errors::new();
        let Some(properties) = member(body, "properties").filter(|value| value.is_object()) else {
            return Err(ArmError::invalid_content(
                "The deployment has no 'properties'; a JSON object with 'mode' and 'template' is expected.",
            ));
        };
        refuse_unbuilt(properties, &mut errors);
        refuse_debugging(properties, &mut errors);
        let location = member(body, "location").and_then(Value::as_str).map(str::to_owned);
        match &location {
            Some(location) => cove_arm::provider::check_location(location, &mut errors),
            None if !is_group => errors.push(
                ArmError::new(400, "LocationRequired", "The location property is required for this definition.")
                    .at("location"),
            ),
            None => {}
        }
        let mode = read_mode(properties, is_group, &mut errors);
        let level = member(properties, "validationLevel").and_then(Value::as_str).unwrap_or("Provider");
        if !["Template", "Provider", "ProviderNoRbac"].iter().any(|known| known.eq_ignore_ascii_case(level)) {
            errors.invalid(
                "properties.validationLevel",
                format!("'{level}' is not a validation level; expected Template, Provider or ProviderNoRbac."),
            );
        }
        let template = member(properties, "template").filter(|value| value.is_object()).cloned();
        if template.is_none() && errors.is_empty() {
            errors.push(
                ArmError::new(
                    400,
                    "InvalidTemplate",
                    "The deployment has no template; give one as 'properties.template'.",
                )
                .at("properties.template"),
            );
        }
        errors.into_result()?;
        Ok(Self {
            location,
            tags: member(body, "tags").filter(|value| value.is_object()).cloned(),
            mode,
            is_checked_by_providers: !level.eq_ignore_ascii_case("Template"),
            template: template.unwrap_or_default(),
            parameters: member(properties, "parameters").cloned().unwrap_or_else(|| serde_json::json!({})),
        })
    }

    fn expand(self, bytes: &Bytes, scope: Scope) -> Result<Request, ArmError> {
        let refuse = |errors: Vec<TemplateError>| refusal(&errors, bytes);
        let template = Template::parse(&self.template, &self.parameters, scope).map_err(refuse)?;
        let plan = template.expand().map_err(refuse)?;
        Ok(Request {
            location: self.location,
            tags: self.tags,
            mode: self.mode,
            is_checked_by_providers: self.is_checked_by_providers,
            hash: Template::hash(&self.template),
            parameters: template.echoed_parameters(),
            text: Arc::new(self.template),
            plan: Arc::new(plan),
        })
    }
}

fn refuse_unbuilt(properties: &Value, errors: &mut Errors) {
    let unbuilt = [
        ("templateLink", "Templates by link", "put the template itself into 'properties.template'"),
        ("parametersLink", "Parameters by link", "put the parameters themselves into 'properties.parameters'"),
        ("extensionConfigs", "Extensions of the template language", "leave 'extensionConfigs' out"),
        ("onErrorDeployment", "Rolling back to another deployment", "run that deployment again when this one fails"),
    ];
    for (name, what, instead) in unbuilt {
        if member(properties, name).is_some() {
            errors.push(ArmError::not_implemented(&format!("properties.{name}"), what, instead));
        }
    }
}

/// Requests and answers of resources are not kept: they may hold secrets.
fn refuse_debugging(properties: &Value, errors: &mut Errors) {
    let level = member(properties, "debugSetting").and_then(|setting| member(setting, "detailLevel"));
    if level.and_then(Value::as_str).is_some_and(|level| !level.eq_ignore_ascii_case("none")) {
        let target = "properties.debugSetting.detailLevel";
        errors.push(ArmError::not_implemented(
            target,
            "Keeping requests and answers",
            "look at the operations instead",
        ));
    }
}

fn read_mode(properties: &Value, is_group: bool, errors: &mut Errors) -> Mode {
    match member(properties, "mode").and_then(Value::as_str) {
        Some(mode) if mode.eq_ignore_ascii_case("Incremental") => return Mode::Incremental,
        Some(mode) if mode.eq_ignore_ascii_case("Complete") && is_group => return Mode::Complete,
        Some(mode) if mode.eq_ignore_ascii_case("Complete") => errors.invalid(
            "properties.mode",
            "Mode 'Complete' is for resource groups only; deploy to a subscription with mode 'Incremental'.",
        ),
        Some(mode) => errors.invalid(
            "properties.mode",
            format!("'{mode}' is not a deployment mode; expected Incremental or Complete."),
        ),
        None => {
            errors.invalid("properties.mode", "The deployment mode is required; expected Incremental or Complete.");
        }
    }
    Mode::Incremental
}

/// Mistakes of a template as ARM tells them: one error whose text has all, with the line in the template where it is known.
fn refusal(mistakes: &[TemplateError], body: &[u8]) -> ArmError {
    let mut errors: Vec<ArmError> = mistakes.iter().map(|mistake| with_line(mistake, body)).collect();
    if errors.len() == 1 {
        return errors.remove(0);
    }
    let texts: Vec<String> = errors.iter().map(|error| sentence(&error.message)).collect();
    let message = format!("The template has {} mistakes. {}", errors.len(), texts.join(" "));
    let mut all = ArmError::new(400, "InvalidTemplate", message);
    all.details = errors;
    all
}

fn with_line(mistake: &TemplateError, body: &[u8]) -> ArmError {
    let place = cove_template::locate(body, "properties.template", &mistake.path);
    let lines = place.map_or_else(String::new, |at| format!(" (line {}, column {})", at.line, at.column));
    let message = match mistake.path.as_str() {
        "" => mistake.message.clone(),
        path => format!("At '{path}'{lines}: {}", mistake.message),
    };
    let error = ArmError::new(400, &mistake.code, message);
    if mistake.path.is_empty() { error } else { error.at(mistake.path.as_str()) }
}

/// A text that another may follow.
pub(crate) fn sentence(text: &str) -> String {
    if text.ends_with(['.', '!', '?']) { text.to_owned() } else { format!("{text}.") }
}

/// Mistakes found while a template runs, as one error about a resource or output.
pub(crate) fn of_mistakes(mistakes: &[TemplateError]) -> ArmError {
    refusal(mistakes, b"")
}
