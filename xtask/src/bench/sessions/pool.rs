//! One session pool of the server under test.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::cove::{Address, Cove, SAMPLE, environment_id, pool_id, versioned};

/// Longest wait until a pool has its ready sessions.
pub(super) const READY_LIMIT: Duration = Duration::from_secs(300);

/// One pool.
pub(super) struct Pool {
    id: String,
    name: &'static str,
    host: String,
    token: String,
}

impl Pool {
    /// Makes a pool of the sample that keeps some ready and allows so many.
    pub(super) async fn create(
        cove: &Cove,
        name: &'static str,
        isolation: &str,
        (ready, max): (u32, u32),
        token: &str,
    ) -> anyhow::Result<Self> {
        let id = pool_id(name);
        let body = json!({
            "location": "westeurope",
            "properties": {
                "environmentId": environment_id(),
                "poolManagementType": "Dynamic",
                "containerType": "CustomContainer",
                "customContainerTemplate": {
                    "containers": [{"name": "main", "image": SAMPLE, "resources": {"cpu": 0.25, "memory": "0.5Gi"}}],
                    "ingress": {"targetPort": 80},
                },
                "scaleConfiguration": {"maxConcurrentSessions": max, "readySessionInstances": ready},
                "sessionNetworkConfiguration": {"status": "EgressDisabled"},
                "coveIsolation": isolation,
            },
        });
        cove.ask("PUT", &versioned(&id), Some(&body)).await?;
        let made = cove.until_provisioned(&id).await?;
        let endpoint = made["properties"]["poolManagementEndpoint"].as_str().context("the pool has no endpoint")?;
        let host = endpoint.trim_start_matches("https://").split(['/', ':']).next().unwrap_or_default().to_owned();
        Ok(Self { id, name, host, token: token.to_owned() })
    }

    /// A request through the ingress: how long until its last byte, and which session answered.
    pub(super) async fn get(&self, address: &Address, identifier: &str) -> anyhow::Result<(Duration, String)> {
        let begun = Instant::now();
        let (status, guid) = address.session(&self.host, &format!("/?identifier={identifier}"), &self.token).await?;
        ensure!(status == 200, "the session of `{identifier}` was answered {status}");
        Ok((begun.elapsed(), guid.context("no session says that it answered")?))
    }

    /// New sessions with the files of one: their identifiers, when all are ready.
    pub(super) async fn fork(&self, address: &Address, source: &str, count: u16) -> anyhow::Result<Vec<String>> {
        let path = format!("/.management/fork?identifier={source}&count={count}");
        let (status, answer) = address.session_json("POST", &self.host, &path, &self.token).await?;
        ensure!(status == 200, "a fork of `{source}` was answered {status}: {answer}");
        let made = answer["sessions"].as_array().context("the answer names no sessions")?;
        Ok(made.iter().filter_map(|one| one["identifier"].as_str().map(str::to_owned)).collect())
    }

    pub(super) async fn stop(&self, address: &Address, identifier: &str) -> anyhow::Result<()> {
        let path = format!("/.management/stopSession?identifier={identifier}");
        let (status, _) = address.session_call("POST", &self.host, &path, &self.token).await?;
        ensure!(status == 200, "stopping `{identifier}` was answered {status}");
        Ok(())
    }

    /// Waits until the server counts so many ready sessions.
    pub(super) async fn until_counted(&self, address: &Address, count: u16) -> anyhow::Result<()> {
        let wanted =
            format!("cove_sessions{{pool=\"{}\",resource_group=\"bench\",state=\"ready\"}} {count}\n", self.name);
        let deadline = Instant::now() + READY_LIMIT;
        while !address.metrics().await?.contains(&wanted) {
            ensure!(Instant::now() < deadline, "`{}` did not have {count} ready sessions in time", self.id);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    pub(super) async fn delete(&self, cove: &Cove) -> anyhow::Result<()> {
        cove.delete_app(&self.id).await
    }

    /// The same pool, for a task of its own.
    pub(super) fn again(&self) -> Self {
        Self { id: self.id.clone(), name: self.name, host: self.host.clone(), token: self.token.clone() }
    }
}
