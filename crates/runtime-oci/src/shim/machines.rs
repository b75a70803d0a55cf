//! The turns of a replica's machines in the helper's loop.

use std::time::Instant;

use super::{
    container::{Container, Run},
    machine::Happened,
    supervisor::Supervisor,
};
use crate::protocol::FromShim;

impl Supervisor {
    /// Lets every machine do what it can.
    pub(super) fn machine_turns(&mut self, now: Instant) {
        for index in 0..self.containers.len() {
            self.machine_turn(index, now);
            let container = &mut self.containers[index];
            if matches!(container.run, Run::Draining { .. } | Run::Done | Run::Backoff { .. })
                && let Some(mut machine) = container.machine.take()
            {
                let ended = machine.end_execs();
                self.tell_of(ended);
            }
        }
    }

    /// Reads and writes what one machine has.
    pub(super) fn machine_turn(&mut self, index: usize, now: Instant) {
        let container = &mut self.containers[index];
        let may_take = container.reads_at(now).is_none();
        let Some(machine) = &mut container.machine else { return };
        let happened = machine.turn(now, may_take);
        let (of_execs, of_program): (Vec<_>, Vec<_>) = happened
            .into_iter()
            .partition(|what| matches!(what, Happened::ExecStarted(_) | Happened::ExecEnded { .. }));
        for what in of_program {
            self.take_from_machine(index, what, now);
        }
        self.tell_of(of_execs);
    }

    fn take_from_machine(&mut self, index: usize, what: Happened, now: Instant) {
        let container = &mut self.containers[index];
        match what {
            Happened::Output(stream, bytes) => container.log_output(stream, &bytes, now),
            Happened::Listening(port) => {
                if container.listens_at(port) {
                    self.phases.listening_at.get_or_insert_with(jiff::Timestamp::now);
                }
            }
            Happened::Exited(_) => container.end_within(now),
            Happened::CannotRun(reason) => container.cannot_be_run(reason, now),
            Happened::Broken(reason) => container.is_broken(reason, now),
            Happened::Again(reason) => container.is_to_begin_again(reason, now),
            Happened::Template(news) => container.status.template = Some(news),
            Happened::Note(text) => container.note(&text),
            Happened::ExecStarted(_) | Happened::ExecEnded { .. } => {}
        }
    }

    pub(super) fn tell_of(&mut self, happened: Vec<Happened>) {
        for what in happened {
            match what {
                Happened::ExecStarted(id) => self.broadcast(&FromShim::ExecStarted { id }),
                Happened::ExecEnded { id, code, error } => self.broadcast(&FromShim::ExecEnded { id, code, error }),
                _ => {}
            }
        }
    }

    /// Commands under way, those in machines too.
    pub(super) fn execs_under_way(&self) -> usize {
        let machines = self.containers.iter().filter_map(|container: &Container| container.machine.as_ref());
        self.execs.len() + machines.map(super::machine::Machine::execs).sum::<usize>()
    }
}
