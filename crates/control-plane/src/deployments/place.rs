//! Where a deployment is: its scope, its id, and the rules of its name.

use cove_arm::ArmError;
use cove_model::ResourceId;
use cove_store::{Provisioning, ResourceRow};
use cove_template::{Group, Scope};
use serde_json::{Value, json};

use super::{KIND, NAME_MAX};
use crate::{answer::Refusal, auth::Caller, call::Call, control_plane::ControlPlane, groups};

/// A deployment's place; the group exists.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The group, for a deployment at group scope.
    pub(crate) group: Option<ResourceRow>,
    /// Id of the group or subscription.
    pub(crate) scope: ResourceId,
    /// Id of the deployment.
    pub(crate) id: ResourceId,
}

impl Place {
    /// The place that a path names, to read.
    ///
    /// # Errors
    /// 404 `ResourceGroupNotFound`.
    pub(crate) fn of(plane: &ControlPlane, call: &Call) -> Result<Self, Refusal> {
        let place = Self::all(plane, call)?;
        let id = place.scope.extension(KIND, call.name("deployment"));
        let id = id.map_err(|error| ArmError::new(400, "InvalidResourceId", error.to_string()))?;
        Ok(Self { id, ..place })
    }

    /// The scope that a path names, for all of its deployments; its own id stands for theirs.
    ///
    /// # Errors
    /// 404 `ResourceGroupNotFound`.
    pub(crate) fn all(plane: &ControlPlane, call: &Call) -> Result<Self, Refusal> {
        let group = if call.name("group").is_empty() { None } else { Some(groups::require(plane, call)?) };
        let scope = match &group {
            Some(group) => group.id.clone(),
            None => call.subscription_id()?,
        };
        Ok(Self { group, id: scope.clone(), scope })
    }

    /// The place that a path names, to deploy to.
    ///
    /// # Errors
    /// As [`Place::of`]; 409 while the group is being deleted, 400 for the name.
    pub(crate) fn to_deploy(plane: &ControlPlane, call: &Call) -> Result<Self, Refusal> {
        let place = Self::of(plane, call)?;
        if place.group.as_ref().is_some_and(|group| group.provisioning == Provisioning::Deleting) {
            groups::require_writable(plane, call)?;
        }
        check_name(call.name("deployment"))?;
        Ok(place)
    }

    /// The stored deployment.
    ///
    /// # Errors
    /// 404 `DeploymentNotFound`.
    pub(crate) fn require(&self, plane: &ControlPlane) -> Result<ResourceRow, Refusal> {
        let found = plane.store().resource(&self.id)?;
        found.ok_or_else(|| {
            let message = format!("Deployment '{}' could not be found.", self.id.name());
            ArmError::new(404, "DeploymentNotFound", message).into()
        })
    }

    /// What the scope functions of the template language answer here.
    pub(crate) fn scope(&self, plane: &ControlPlane, call: &Call, location: Option<&str>) -> Scope {
        let config = plane.config();
        let subscription = cove_arm::identity_docs::subscription(&config.subscription, &config.tenant);
        let authority = cove_arm::identity_docs::Authority::Entra;
        Scope {
            tenant: config.tenant.clone(),
            subscription: self.scope.subscription().to_owned(),
            subscription_name: subscription["displayName"].as_str().unwrap_or("Cove").to_owned(),
            group: self.group.as_ref().map(group_of),
            deployment: self.id.name().to_owned(),
            location: location.map(str::to_owned),
            now: plane.clock().now(),
            seed: *uuid::Uuid::new_v4().as_bytes(),
            deployer: deployer(&call.caller, &config.tenant),
            environment: cove_arm::identity_docs::metadata(&call.origin, &config.tenant, authority),
        }
    }
}

fn group_of(row: &ResourceRow) -> Group {
    let location = row.doc.get("location").and_then(Value::as_str).unwrap_or("local");
    Group {
        name: row.id.name().to_owned(),
        location: cove_arm::provider::location_key(location),
        tags: row.doc.get("tags").cloned().unwrap_or_else(|| json!({})),
    }
}

fn deployer(caller: &Caller, tenant: &str) -> Value {
    match caller {
        Caller::Anonymous => json!({ "objectId": "", "tenantId": tenant, "userPrincipalName": "" }),
        Caller::Token(claims) => json!({
            "objectId": claims.oid,
            "tenantId": claims.tid,
            "userPrincipalName": claims.upn.clone().unwrap_or_default(),
        }),
    }
}

fn check_name(name: &str) -> Result<(), ArmError> {
    if name.chars().count() > NAME_MAX {
        let message = format!(
            "The provided deployment name '{}…' has a length of '{}' which exceeds the maximum length of '{NAME_MAX}'.",
            name.chars().take(NAME_MAX).collect::<String>(),
            name.chars().count()
        );
        return Err(ArmError::new(400, "DeploymentNameLengthLimitExceeded", message));
    }
    if name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '(' | ')')) {
        return Ok(());
    }
    let message =
        format!("The deployment name '{name}' is not valid: use 1 to {NAME_MAX} letters, digits and '-_.()'.");
    Err(ArmError::new(400, "InvalidDeploymentName", message))
}
