//! Worlds of sessions from a seed: a pool, users at once, crashes, and in most a clock that is set.

use std::{collections::BTreeMap, sync::Arc};

use cove_model::{
    ResourceId, SESSION_POOL_KIND, Scale, SessionContainer, SessionEgress, SessionIsolation, SessionLifecycle,
    SessionPool, Template, generation_name,
};
use cove_reconcile::{Images, SessionSettings};
use jiff::Timestamp;

use super::{SessionMutation, SessionSim, SessionStats, What, checks::COOL_DOWN_SECS};
use crate::random::Random;

pub(super) fn world(seed: u64) -> SessionSim {
    let mut random = Random::new(seed);
    let sessions_max = 60 + 20 * u32::try_from(random.between(0, 4)).unwrap_or(0);
    let sessions_ready = u32::try_from(random.between(1, 6)).unwrap_or(1);
    let mut sim = SessionSim {
        now_ms: 0,
        offset: "2026-03-02T00:00:00Z".parse::<Timestamp>().expect("a time"),
        heap: Default::default(),
        number: 0,
        pool: pool(sessions_max, sessions_ready),
        settings: SessionSettings::default(),
        images: Images::Ready { exposed_ports: BTreeMap::new() },
        disk: BTreeMap::new(),
        server: None,
        replicas: BTreeMap::new(),
        begun: Default::default(),
        served: BTreeMap::new(),
        users: 0,
        is_quiet: false,
        epoch: 0,
        random,
        mutation: SessionMutation::None,
        stats: SessionStats::default(),
        violations: Vec::new(),
    };
    sim.push(0, What::Restart);
    let user = sim.soon(5_000);
    sim.push(user, What::User);
    let crash = sim.soon(600_000);
    sim.push(crash, What::Crash);
    if sim.random.chance(0.7) {
        let jump = sim.soon(3_600_000);
        sim.push(jump, What::Jump);
    }
    sim
}

fn pool(sessions_max: u32, sessions_ready: u32) -> SessionPool {
    let template = Template {
        init_containers: Vec::new(),
        containers: Vec::new(),
        volumes: Vec::new(),
        scale: Scale::default(),
        termination_grace_period_secs: 30,
    };
    SessionPool {
        id: ResourceId::resource("sim", "sim", SESSION_POOL_KIND, "pool").expect("plain names"),
        environment: None,
        workload_profile: None,
        container: SessionContainer::Custom,
        template: Arc::new(template),
        target_port: 80,
        lifecycle: SessionLifecycle::Timed { cooldown_secs: COOL_DOWN_SECS },
        sessions_max,
        sessions_ready,
        egress: SessionEgress::Disabled,
        egress_rules: Vec::new(),
        isolation: SessionIsolation::Hardened,
        registries: Vec::new(),
        managed_identities: Vec::new(),
        is_mcp_enabled: false,
        snapshot: None,
        suspend: None,
        generation: generation_name("pool", "sim0001").expect("letters and digits"),
    }
}
