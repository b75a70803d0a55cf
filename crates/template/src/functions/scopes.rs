//! Functions that answer what surrounds the deployment.

use serde_json::{Value, json};

use super::args::Args;
use crate::meter::Fault;

pub(super) fn resource_group(args: Args<'_, '_>) -> Result<Value, Fault> {
    let scope = &args.env.names.scope;
    let Some(group) = &scope.group else {
        return Err(args.fault("a deployment at subscription scope has no resource group"));
    };
    Ok(json!({
        "id": scope.id(),
        "name": group.name,
        "type": "Microsoft.Resources/resourceGroups",
        "location": group.location,
        "tags": group.tags,
        "properties": {"provisioningState": "Succeeded"},
    }))
}

pub(super) fn subscription(args: Args<'_, '_>) -> Result<Value, Fault> {
    let scope = &args.env.names.scope;
    Ok(json!({
        "id": format!("/subscriptions/{}", scope.subscription),
        "subscriptionId": scope.subscription,
        "tenantId": scope.tenant,
        "displayName": scope.subscription_name,
    }))
}

pub(super) fn tenant(args: Args<'_, '_>) -> Result<Value, Fault> {
    let tenant = &args.env.names.scope.tenant;
    Ok(json!({"id": format!("/tenants/{tenant}"), "tenantId": tenant, "displayName": tenant}))
}

pub(super) fn management_group(args: Args<'_, '_>) -> Result<Value, Fault> {
    Err(args.fault("there are no deployments at management group scope; use subscription() or resourceGroup()"))
}

pub(super) fn deployment(args: Args<'_, '_>) -> Result<Value, Fault> {
    let names = args.env.names;
    let mut answer = json!({
        "name": names.scope.deployment,
        "properties": {
            "mode": "Incremental",
            "provisioningState": "Accepted",
            "parameters": {},
            "template": names.head,
        },
    });
    if let Some(location) = &names.scope.location {
        answer["location"] = location.as_str().into();
    }
    Ok(answer)
}

pub(super) fn deployer(args: Args<'_, '_>) -> Result<Value, Fault> {
    args.env.meter.copy(&args.env.names.scope.deployer)?;
    Ok(args.env.names.scope.deployer.clone())
}

pub(super) fn environment(args: Args<'_, '_>) -> Result<Value, Fault> {
    args.env.meter.copy(&args.env.names.scope.environment)?;
    Ok(args.env.names.scope.environment.clone())
}
