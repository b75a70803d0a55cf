//! Whole templates: what `az` and the Bicep compiler send, and what must be refused.

mod bad;
mod deployments;
mod limits;

use serde_json::{Value, json};

use crate::{Evaluated, Group, Known, LookupError, Need, Plan, Scope, Template, TemplateError};

/// A deployment `main` to the group `rg` of the subscription `00000000-…`.
pub(crate) fn scope() -> Scope {
    Scope {
        tenant: "22222222-0000-0000-0000-000000000000".into(),
        subscription: "00000000-0000-0000-0000-000000000000".into(),
        subscription_name: "mine".into(),
        group: Some(Group { name: "rg".into(), location: "eastus".into(), tags: json!({}) }),
        deployment: "main".into(),
        location: None,
        now: "2026-11-22T01:02:03.5Z".parse().unwrap(),
        seed: [7; 16],
        deployer: json!({"objectId": "me"}),
        environment: json!({"name": "AzureCloud"}),
    }
}

/// The plan of a template given as text.
fn plan(text: &str, parameters: &Value) -> Result<Plan, Vec<TemplateError>> {
    let template = crate::parse_body(text.as_bytes()).unwrap();
    Template::parse(&template, parameters, scope())?.expand()
}

/// Mistakes, one a line.
fn complaints(errors: &[TemplateError]) -> String {
    errors.iter().map(|error| format!("{} at {}: {}\n", error.code, error.path, error.message)).collect()
}

/// An id as people read it.
fn short(id: &str) -> String {
    id.replace("/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/", "~/")
        .replace("/subscriptions/00000000-0000-0000-0000-000000000000", "/sub")
}

/// A plan with its bodies, as far as they are known without answers.
fn show(plan: &Plan) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for (index, resource) in plan.resources.iter().enumerate() {
        let mut marks = String::new();
        for (mark, is_set) in [(" skipped", !resource.condition), (" existing", resource.existing)] {
            if is_set {
                marks.push_str(mark);
            }
        }
        if let Some(copy) = &resource.copy {
            let _ = write!(marks, " {}[{} of {}]", copy.name, copy.index, copy.count);
        }
        let location = resource.location.as_deref().unwrap_or("-");
        let symbolic = resource.symbolic.as_deref().unwrap_or("-");
        let _ = writeln!(
            text,
            "{index} {symbolic} {}@{} in {location} after {:?}{marks}",
            short(&resource.id),
            resource.api_version,
            resource.depends_on
        );
        if resource.condition && !resource.existing {
            match plan.evaluate_body(index, &Known::new()) {
                Ok(Evaluated::Ready(body)) => {
                    let _ = writeln!(text, "    {}", short(&body.to_string()));
                }
                Ok(Evaluated::Needs(needs)) => needs.iter().for_each(|need| {
                    let _ = writeln!(text, "    needs {}", show_need(need));
                }),
                Err(errors) => {
                    let _ = writeln!(text, "    {}", complaints(&errors));
                }
            }
        }
    }
    text
}

fn show_need(need: &Need) -> String {
    match need {
        Need::Reference { id, api_version } => format!("{}@{}", short(id), api_version.as_deref().unwrap_or("-")),
        Need::List { function, id, api_version, body } => format!("{function} {}@{api_version} {body:?}", short(id)),
    }
}

/// Evaluates until nothing is lacking; `answer` is asked for each need.
fn settle(
    mut evaluate: impl FnMut(&Known) -> Result<Evaluated, Vec<TemplateError>>,
    answer: impl Fn(&Need) -> Result<Value, LookupError>,
) -> Result<Value, Vec<TemplateError>> {
    let mut known = Known::new();
    for _ in 0..8 {
        match evaluate(&known)? {
            Evaluated::Ready(value) => return Ok(value),
            Evaluated::Needs(needs) => {
                assert!(!needs.is_empty(), "an evaluation that waits names what for");
                for need in needs {
                    let found = answer(&need);
                    known.insert(need, found);
                }
            }
        }
    }
    panic!("needs do not come to an end")
}
