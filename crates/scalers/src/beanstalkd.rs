//! `beanstalkd`: jobs of a tube that are ready or reserved, and the delayed ones where the rule asks for them.
//!
//! Reserved jobs count as in KEDA: whoever works on one is still needed.
//!
//! **Invariant:** nothing but `stats-tube` is asked; a tube that does not exist is empty.

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use bytes::{Buf as _, BytesMut};
use cove_base::Tasks;
use cove_scaling::source::{Answer, tube_jobs};
use tokio_util::codec::Decoder;

use crate::dial::{Address, Peer};
use crate::keys;
use crate::pipe::Pipe;
use crate::pool::Pool;
use crate::source::{Context, OpenError, ReadError, ReadFuture, Source, Trigger};

/// beanstalkd's usual port.
const PORT: u16 = 11300;
/// Characters of a tube's name, as the server allows.
const TUBE_MAX: usize = 200;
/// Bytes of a line, and of the statistics behind it.
const LINE_MAX: usize = 16 << 10;

/// The connections to all servers.
#[derive(Debug, Default)]
pub(crate) struct Servers {
    pool: Pool<Peer, Pipe<Reply>>,
    tasks: Tasks,
}

/// What the server said.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reply {
    /// `OK` and the statistics: a line `name: number` each.
    Statistics(String),
    /// Another word, such as `NOT_FOUND`.
    Word(String),
}

/// One rule's tube.
#[derive(Debug)]
pub(crate) struct Tube {
    servers: Arc<Servers>,
    context: Context,
    address: Address,
    name: String,
    include_delayed: bool,
}

/// Reads server and tube.
///
/// # Errors
/// Metadata that cannot be used.
pub(crate) fn open(servers: &Arc<Servers>, trigger: &Trigger, context: &Context) -> Result<Tube, OpenError> {
    let address = Address::parse(keys::required(trigger, "server")?, Some(PORT))?;
    let name = keys::required(trigger, "tube")?.to_owned();
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-+/;.$_()".contains(c);
    if name.len() > TUBE_MAX || name.starts_with('-') || !name.chars().all(is_allowed) {
        return Err(OpenError::metadata("tube is no name that beanstalkd allows: letters, digits, -+/;.$_()"));
    }
    let include_delayed = keys::flag(trigger, "includeDelayed", false)?;
    Ok(Tube { servers: Arc::clone(servers), context: context.clone(), address, name, include_delayed })
}

impl Tube {
    async fn answer(&self) -> Result<Answer, ReadError> {
        let (pool, tasks) = (&self.servers.pool, &self.servers.tasks);
        let peer = Peer::new(self.address.clone(), &self.context);
        let connect = || async { Ok(Pipe::open(tasks, Box::new(peer.tcp().await?), Lines)) };
        let mut pipe = pool.get(&peer, connect).await?;
        if pipe.is_stale() {
            pool.forget_if(&peer, |other| other.is(&pipe)).await;
            pipe = pool.get(&peer, connect).await?;
        }
        let asked = pipe.ask(format!("stats-tube {}\r\n", self.name).into_bytes(), 1).await;
        if asked.is_err() {
            pool.forget_if(&peer, |other| other.is(&pipe)).await;
        }
        let address = &self.address;
        let mut replies = asked.map_err(|error| ReadError::new(format!("{address}: {error}")))?;
        match replies.pop() {
            Some(Reply::Statistics(text)) => self.jobs(&text),
            Some(Reply::Word(word)) if word == "NOT_FOUND" => Ok(Answer::Number(0.0)),
            Some(Reply::Word(word)) => Err(ReadError::new(format!("{address} answered {}", keys::short(&word)))),
            None => Err(ReadError::new(format!("{address} gave no answer"))),
        }
    }

    fn jobs(&self, text: &str) -> Result<Answer, ReadError> {
        let count = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|value| value.trim().parse::<u64>().ok())
                .ok_or_else(|| ReadError::new(format!("{} gave no {name}", self.address)))
        };
        let at_work = count("current-jobs-ready")?.saturating_add(count("current-jobs-reserved")?);
        Ok(Answer::Number(tube_jobs(at_work, count("current-jobs-delayed")?, self.include_delayed)))
    }
}

impl Source for Tube {
    fn read(&self) -> ReadFuture<'_> {
        Box::pin(self.answer())
    }
}

/// Finds answers to `stats-tube` in a stream of bytes.
#[derive(Debug)]
struct Lines;

impl Decoder for Lines {
    type Item = Reply;
    type Error = io::Error;

    fn decode(&mut self, input: &mut BytesMut) -> io::Result<Option<Reply>> {
        let wrong = || io::Error::other("the peer does not speak beanstalkd");
        let Some(end) = input.windows(2).position(|pair| pair == b"\r\n") else {
            return if input.len() > LINE_MAX { Err(wrong()) } else { Ok(None) };
        };
        let line = std::str::from_utf8(&input[..end]).map_err(|_| wrong())?;
        let Some(length) = line.strip_prefix("OK ") else {
            let is_word = !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            let word = line.to_owned();
            input.advance(end + 2);
            return if is_word { Ok(Some(Reply::Word(word))) } else { Err(wrong()) };
        };
        let length: usize = length.parse().map_err(|_| wrong())?;
        if length > LINE_MAX {
            return Err(wrong());
        }
        if input.len() < end + 2 + length + 2 {
            return Ok(None);
        }
        input.advance(end + 2);
        let text = String::from_utf8_lossy(&input[..length]).into_owned();
        input.advance(length + 2);
        Ok(Some(Reply::Statistics(text)))
    }
}
