//! Functions that name things: parameters, variables, loops, resource ids, and what resources answer.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::args::{Args, kind_of};
use super::get;
use crate::eval::{CopyFrame, Env, Val, World};
use crate::expr::Expr;
use crate::ids;
use crate::meter::Fault;
use crate::runtime::Need;

fn name_of<'a>(value: &'a Val<'_>, function: &str) -> Result<&'a str, Fault> {
    value.as_str().ok_or_else(|| {
        Fault::new(format!(
            "unable to evaluate template language function '{function}': the name must be a string; {} is given",
            kind_of(value)
        ))
    })
}

pub(super) fn parameters<'v>(env: &Env<'v>, args: &'v [Expr]) -> Result<Val<'v>, Fault> {
    let name = env.eval(&args[0])?;
    let name = name_of(&name, "parameters")?;
    let Some(arguments) = env.arguments else { return env.names.parameter(name, env).map(Cow::Borrowed) };
    let lower = name.to_lowercase();
    let value = arguments.iter().find(|(known, _)| *known == lower).map(|(_, value)| Cow::Borrowed(value));
    value.ok_or_else(|| Fault::new(format!("the function has no parameter '{name}'")))
}

pub(super) fn variables<'v>(env: &Env<'v>, args: &'v [Expr]) -> Result<Val<'v>, Fault> {
    let name = env.eval(&args[0])?;
    env.names.variable(name_of(&name, "variables")?, env).map(Cow::Borrowed)
}

pub(super) fn copy_index(args: Args<'_, '_>) -> Result<Value, Fault> {
    let (name, offset) = match (args.optional(0), args.optional(1)) {
        (Some(Value::String(name)), Some(_)) => (Some(name.as_str()), args.integer(1)?),
        (Some(Value::String(name)), None) => (Some(name.as_str()), 0),
        (Some(_), None) => (None, args.integer(0)?),
        (Some(_), Some(_)) => return Err(args.wrong(0, "the name of a loop when an offset follows")),
        (None, _) => (None, 0),
    };
    let frames = || std::iter::successors(args.env.copy, |frame| frame.outer);
    let frame: Option<&CopyFrame<'_>> = match name {
        Some(name) => frames().find(|frame| frame.name.eq_ignore_ascii_case(name)),
        None => frames().find(|frame| frame.is_outer).or_else(|| frames().next()),
    };
    let frame = frame.ok_or_else(|| match name {
        Some(name) => args.fault(format!("no copy loop '{name}' is around it")),
        None => args.fault("no copy loop is around it"),
    })?;
    let index = i64::try_from(frame.index).ok().and_then(|index| index.checked_add(offset));
    index.map(Value::from).ok_or_else(|| args.fault("the result does not fit into a 64-bit integer"))
}

/// `type` and names of an id, after the scope arguments that came before them.
fn path(args: &Args<'_, '_>, from: usize) -> Result<String, Fault> {
    let kind = args.text(from)?;
    let names: Vec<&str> = (from + 1..args.len()).map(|index| args.text(index)).collect::<Result<_, _>>()?;
    ids::provider_path(kind, &names).map_err(|error| args.fault(error))
}

/// Index of the argument that is a resource type: the first with a slash.
fn type_at(args: &Args<'_, '_>, scopes_max: usize) -> Result<usize, Fault> {
    for index in 0..args.len() {
        if args.text(index)?.contains('/') {
            return if index <= scopes_max { Ok(index) } else { Err(args.wrong(index, "a name, after the type")) };
        }
    }
    Err(args.fault("the resource type is missing; write it as 'Microsoft.App/containerApps'"))
}

pub(super) fn resource_id(args: Args<'_, '_>) -> Result<Value, Fault> {
    let at = type_at(&args, 2)?;
    let scope = &args.env.names.scope;
    let path = path(&args, at)?;
    let base = match at {
        0 => scope.id(),
        1 => format!("/subscriptions/{}/resourceGroups/{}", scope.subscription, args.text(0)?),
        _ => format!("/subscriptions/{}/resourceGroups/{}", args.text(0)?, args.text(1)?),
    };
    Ok(format!("{base}{path}").into())
}

pub(super) fn subscription_resource_id(args: Args<'_, '_>) -> Result<Value, Fault> {
    let at = type_at(&args, 1)?;
    let subscription = if at == 0 { &args.env.names.scope.subscription } else { args.text(0)? };
    Ok(format!("/subscriptions/{subscription}{}", path(&args, at)?).into())
}

pub(super) fn tenant_resource_id(args: Args<'_, '_>) -> Result<Value, Fault> {
    type_at(&args, 0)?;
    Ok(path(&args, 0)?.into())
}

pub(super) fn management_group_resource_id(args: Args<'_, '_>) -> Result<Value, Fault> {
    if type_at(&args, 1)? == 0 {
        return Err(args.fault("a management group must be named first: there are no deployments at that scope"));
    }
    let group = args.text(0)?;
    Ok(format!("/providers/Microsoft.Management/managementGroups/{group}{}", path(&args, 1)?).into())
}

pub(super) fn extension_resource_id(args: Args<'_, '_>) -> Result<Value, Fault> {
    let base = args.text(0)?;
    Ok(format!("{}{}", base.trim_end_matches('/'), path(&args, 1)?).into())
}

fn world<'v>(args: &Args<'_, 'v>) -> Result<&'v World<'v>, Fault> {
    args.env.world.ok_or_else(|| args.fault("it can stand in the properties of a resource and in outputs only"))
}

/// Whether the argument at `index` is `'Full'`.
fn is_full(args: &Args<'_, '_>, index: usize) -> Result<bool, Fault> {
    match args.optional(index) {
        None => Ok(false),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("full") => Ok(true),
        Some(_) => Err(args.wrong(index, "'Full'")),
    }
}

/// What `reference` gives of a resource: its properties, or with `'Full'` everything.
fn shown(mut resource: Value, id: &str, api_version: Option<String>, full: bool) -> Value {
    if !full {
        return resource.as_object_mut().and_then(|map| map.remove("properties")).unwrap_or_else(|| json!({}));
    }
    if let Some(map) = resource.as_object_mut() {
        let mut put = |key: &str, value: Value| {
            map.entry(key).or_insert(value);
        };
        put("resourceId", id.into());
        put("apiVersion", api_version.into());
        put("subscriptionId", ids::part(id, "subscriptions").into());
        put("resourceGroupName", ids::part(id, "resourceGroups").into());
    }
    resource
}

pub(super) fn reference(args: Args<'_, '_>) -> Result<Value, Fault> {
    let world = world(&args)?;
    let full = is_full(&args, 2)?;
    let target = world.resources.target(args.text(0)?, &args.env.names.scope).map_err(|error| args.fault(error))?;
    let given = args.optional(1).filter(|version| !version.is_null()).map(|_| args.text(1)).transpose()?;
    let api_version = given.map(str::to_owned).or(target.api_version);
    let resource = world.answer(Need::Reference { id: target.id.clone(), api_version: api_version.clone() })?;
    args.env.meter.copy(&resource)?;
    Ok(shown(resource, &target.id, api_version, full))
}

pub(super) fn references(args: Args<'_, '_>) -> Result<Value, Fault> {
    let world = world(&args)?;
    let full = is_full(&args, 1)?;
    let targets = world.resources.loop_targets(args.text(0)?).map_err(|error| args.fault(error))?;
    let (mut answers, mut is_pending) = (Vec::new(), false);
    for target in targets {
        match world.answer(Need::Reference { id: target.id.clone(), api_version: target.api_version.clone() }) {
            Ok(resource) => {
                args.env.meter.copy(&resource)?;
                answers.push(shown(resource, &target.id, target.api_version, full));
            }
            Err(Fault::Pending) => is_pending = true,
            Err(fault) => return Err(fault),
        }
    }
    if is_pending { Err(Fault::Pending) } else { Ok(Value::Array(answers)) }
}

pub(super) fn list(args: Args<'_, '_>) -> Result<Value, Fault> {
    let world = world(&args)?;
    let target = world.resources.target(args.text(0)?, &args.env.names.scope).map_err(|error| args.fault(error))?;
    let api_version = args.text(1)?.to_owned();
    let body = args.optional(2).filter(|body| !body.is_null()).map(Value::to_string);
    let answer = world.answer(Need::List { function: args.name.to_owned(), id: target.id, api_version, body })?;
    args.env.meter.copy(&answer)?;
    Ok(answer)
}

pub(super) fn resource_info(args: Args<'_, '_>) -> Result<Value, Fault> {
    let world = world(&args)?;
    let target = world.resources.target(args.text(0)?, &args.env.names.scope).map_err(|error| args.fault(error))?;
    Ok(json!({
        "id": target.id,
        "name": ids::last_name(&target.id),
        "type": ids::kind(&target.id),
        "apiVersion": target.api_version,
    }))
}

pub(super) fn pick_zones(args: Args<'_, '_>) -> Result<Value, Fault> {
    (0..3).try_for_each(|index| args.text(index).map(drop))?;
    Ok(json!([]))
}

pub(super) fn providers(args: Args<'_, '_>) -> Result<Value, Fault> {
    Err(args.fault("it is deprecated in Azure and not answered here; write the api version into the template"))
}

pub(super) fn get_secret(args: Args<'_, '_>) -> Result<Value, Fault> {
    Err(args.fault("key vaults are not read by deployments; pass the value as a secureString parameter"))
}

/// A member without regard to case; used where templates are read, not evaluated.
pub(crate) fn member<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    value.as_object().and_then(|map| get(map, name))
}
