//! Freezing a replica: all its containers at once, or none.
//!
//! **Invariant:** only a replica whose containers all run is frozen; one that is being restarted goes on.
//! **Invariant:** what is to be ended is let go on first, so that it can end in order.

use cove_model::ReplicaPhase;

use super::{container::Run, supervisor::Supervisor};

impl Supervisor {
    pub(super) fn freeze(&mut self) {
        if self.phase == ReplicaPhase::Frozen {
            return;
        }
        self.freeze_error = self.try_freeze().err();
    }

    fn try_freeze(&mut self) -> Result<(), String> {
        let is_done = |run: &Run, is_init| is_init && matches!(run, Run::Done);
        let runs = self.containers.iter().all(|container| {
            let is_up = matches!(container.run, Run::Running { .. }) && container.kill_at.is_none();
            is_up || is_done(&container.run, container.spec.is_init)
        });
        if self.phase != ReplicaPhase::Running || !runs {
            return Err("its containers do not all run".to_owned());
        }
        // commands of people who are connected end as they do when a replica ends
        for exec in &self.execs {
            exec.end();
        }
        if let Err(error) = self.env.cgroups.freeze(&self.spec.cgroup) {
            let _ = self.env.cgroups.thaw(&self.spec.cgroup);
            return Err(error.to_string());
        }
        self.phase = ReplicaPhase::Frozen;
        Ok(())
    }

    /// The wake path: one write to a file of the kernel.
    pub(super) fn thaw(&mut self) {
        self.freeze_error = None;
        self.let_go_on();
    }

    pub(super) fn let_go_on(&mut self) {
        if self.phase != ReplicaPhase::Frozen {
            return;
        }
        match self.env.cgroups.thaw(&self.spec.cgroup) {
            Ok(()) => self.phase = ReplicaPhase::Running,
            // It stays frozen, and the order is given again.
            Err(error) => self.freeze_error = Some(format!("it cannot be thawed: {error}")),
        }
    }
}
