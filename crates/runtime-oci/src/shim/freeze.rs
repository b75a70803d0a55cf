//! Freezing a replica: all its containers at once, or none.
//!
//! **Invariant:** only a replica whose containers all run is frozen; one that is being restarted goes on.
//! **Invariant:** what is to be ended is let go on first, so that it can end in order.
//! **Invariant:** while somebody reads what was written nothing runs, and that ends with who reads, whatever ends him.

use std::os::fd::{AsRawFd as _, OwnedFd};

use cove_model::ReplicaPhase;
use nix::sys::socket::MsgFlags;

use super::{container::Run, supervisor::Supervisor};
use crate::{
    layer_copy::open_folder,
    protocol::{RootGiven, send},
};

/// Readers of what was written at a time: one per container, and those of a driver that has just ended.
const READERS_MAX: usize = 64;

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
        let machines = self.containers.iter_mut().filter_map(|container| container.machine.as_mut());
        let ended = machines.flat_map(super::machine::Machine::end_execs).collect();
        self.tell_of(ended);
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
        self.thaws += 1;
        self.let_go_on();
    }

    pub(super) fn let_go_on(&mut self) {
        if self.phase != ReplicaPhase::Frozen {
            return;
        }
        if self.is_held() {
            // they are let go on when the last reader has gone
            self.phase = ReplicaPhase::Running;
            return;
        }
        match self.env.cgroups.thaw(&self.spec.cgroup) {
            Ok(()) => {
                self.phase = ReplicaPhase::Running;
                for machine in self.containers.iter_mut().filter_map(|container| container.machine.as_mut()) {
                    machine.refresh();
                }
            }
            // It stays frozen, and the order is given again.
            Err(error) => self.freeze_error = Some(format!("it cannot be thawed: {error}")),
        }
    }

    /// Gives the directory that a container writes to, and holds the replica still until the reader's socket is closed.
    pub(super) fn give_written(&mut self, name: &str, fds: Vec<OwnedFd>) {
        let Some(socket) = fds.into_iter().next() else { return };
        let answer = |error: Option<String>, fds: &[i32]| {
            // A peer that went away has no use for the answer.
            let _ = send(socket.as_raw_fd(), &RootGiven { error }, fds, MsgFlags::MSG_DONTWAIT);
        };
        let written = match self.hold(name) {
            Ok(written) => written,
            Err(error) => return answer(Some(error), &[]),
        };
        answer(None, &[written.as_raw_fd()]);
        self.readers.push(socket);
    }

    fn hold(&self, name: &str) -> Result<OwnedFd, String> {
        let container = self.containers.iter().find(|container| container.spec.name == name);
        let runs = |run: &Run| matches!(run, Run::Running { .. });
        let bundle = container.filter(|container| runs(&container.run)).and_then(|container| container.bundle.as_ref());
        let bundle = bundle.ok_or_else(|| format!("container `{name}` is not running"))?;
        if !matches!(self.phase, ReplicaPhase::Running | ReplicaPhase::Frozen) || self.readers.len() >= READERS_MAX {
            return Err("the replica does not run, or too many read it".to_owned());
        }
        let written = open_folder(&bundle.dir.join("disk/upper"));
        let written = written.map_err(|error| format!("what container `{name}` writes cannot be read: {error}"))?;
        if self.readers.is_empty()
            && self.phase == ReplicaPhase::Running
            && let Err(error) = self.env.cgroups.freeze(&self.spec.cgroup)
        {
            let _ = self.env.cgroups.thaw(&self.spec.cgroup);
            return Err(error.to_string());
        }
        Ok(written)
    }

    /// A reader is done, or gone.
    pub(super) fn reader_left(&mut self, index: usize) {
        drop(self.readers.remove(index));
        self.go_on_after_readers();
    }

    /// Somebody reads what was written, or CRIU is at work: nothing runs.
    fn is_held(&self) -> bool {
        !self.readers.is_empty() || self.dump.is_some()
    }

    /// The replica is to end: whoever still reads it reads what is no more.
    pub(super) fn end_readers(&mut self) {
        if self.is_held() {
            self.readers.clear();
            self.end_dump();
            self.go_on_after_readers();
        }
    }

    pub(super) fn go_on_after_readers(&mut self) {
        if self.phase == ReplicaPhase::Frozen || self.is_held() {
            return;
        }
        if let Err(error) = self.env.cgroups.thaw(&self.spec.cgroup) {
            // the order to thaw it is given again by whoever asks it something
            self.phase = ReplicaPhase::Frozen;
            self.freeze_error = Some(format!("it cannot be thawed: {error}"));
        }
    }
}
