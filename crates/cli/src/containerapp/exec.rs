//! `containerapp exec` and `containerapp debug`: a command or a shell in a running container.
//!
//! **Invariant:** the terminal is as it was before, however the command ends.

use std::{
    io::{IsTerminal as _, Write as _},
    os::fd::AsFd as _,
};

use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::{
    io::AsyncReadExt as _,
    signal::unix::{SignalKind, signal},
};
use tokio_tungstenite::tungstenite::{Bytes, Error as SocketError, Message};

use super::target::{self, TargetArgs};
use crate::{client::encode, failure::Failure, session::Session, text};

/// Most bytes of one message of input.
const INPUT_BYTES_MAX: usize = 16 * 1024;

/// Exit code when the session ended before its command.
const CUT_OFF: u8 = 255;

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example: cove containerapp exec -n web -g MyRG --command \"ls -l /srv\"")]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Program and arguments, split as a shell does.
    #[arg(long, default_value = "sh")]
    command: String,
}

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example: cove containerapp debug -n web -g MyRG --command \"netstat -tln\"")]
pub(crate) struct DebugArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// What the shell runs instead of reading commands from here.
    #[arg(long)]
    command: Option<String>,
}

pub(crate) async fn exec(session: &Session, args: ExecArgs) -> Result<(), Failure> {
    open(session, &args.target, "execEndpoint", Some(&args.command)).await
}

pub(crate) async fn debug(session: &Session, args: DebugArgs) -> Result<(), Failure> {
    open(session, &args.target, "debugEndpoint", args.command.as_deref()).await
}

async fn open(session: &Session, args: &TargetArgs, endpoint: &str, command: Option<&str>) -> Result<(), Failure> {
    let container = target::container(session, args).await?;
    let endpoint = container[endpoint].as_str().ok_or_else(|| Failure::new("this server has no consoles"))?;
    talk(session, endpoint, command).await
}

/// Runs a command through the WebSocket of an endpoint and carries its bytes; its exit code is this command's.
pub(crate) async fn talk(session: &Session, endpoint: &str, command: Option<&str>) -> Result<(), Failure> {
    let tty = std::io::stdin().is_terminal() && text::stdout_is_terminal();
    let command = command.map(|command| format!("&command={}", encode(command))).unwrap_or_default();
    let separator = if endpoint.contains('?') { '&' } else { '?' };
    let socket = session.client.websocket(&format!("{endpoint}{separator}tty={tty}{command}")).await?;
    let raw = if tty { Some(Raw::begin()?) } else { None };
    let (mut sink, mut stream) = socket.split();
    let end = tokio::select! {
        end = receive(&mut stream, tty) => end,
        end = send(&mut sink, tty) => end,
    };
    drop(raw);
    match end? {
        0 => Ok(()),
        code => Err(Failure::exit(code)),
    }
}

/// The terminal without echo and line editing; back again on drop.
struct Raw(Termios);

impl Raw {
    fn begin() -> Result<Self, Failure> {
        let words = |error: nix::errno::Errno| Failure::new(format!("the terminal cannot be used: {error}"));
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd()).map_err(words)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw).map_err(words)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, &self.0);
    }
}

fn frame(head: &[u8], body: &[u8]) -> Message {
    Message::Binary(Bytes::from([head, body].concat()))
}

fn size() -> Option<Message> {
    let (width, height) = terminal_size::terminal_size()?;
    Some(frame(&[0, 4], format!("{{\"Width\":{},\"Height\":{}}}", width.0, height.0).as_bytes()))
}

/// Sends what is typed and how large the terminal is; ends only when that cannot go on.
async fn send(sink: &mut (impl Sink<Message, Error = SocketError> + Unpin), tty: bool) -> Result<u8, Failure> {
    let gone = |error: SocketError| Failure::new(format!("the connection broke off: {error}"));
    let mut resized = signal(SignalKind::window_change())?;
    if let Some(size) = size().filter(|_| tty) {
        sink.send(size).await.map_err(gone)?;
    }
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; INPUT_BYTES_MAX];
    let mut is_open = true;
    loop {
        tokio::select! {
            _ = resized.recv(), if tty => {
                if let Some(size) = size() {
                    sink.send(size).await.map_err(gone)?;
                }
            }
            read = stdin.read(&mut buffer), if is_open => match read? {
                0 => {
                    is_open = false;
                    sink.send(frame(&[0, 5], &[])).await.map_err(gone)?;
                }
                length => sink.send(frame(&[0, 0], &buffer[..length])).await.map_err(gone)?,
            },
            () = std::future::pending(), if !is_open && !tty => {}
        }
    }
}

/// Prints what comes; the exit code.
async fn receive(
    stream: &mut (impl Stream<Item = Result<Message, SocketError>> + Unpin),
    tty: bool,
) -> Result<u8, Failure> {
    while let Some(message) = stream.next().await {
        let message = message.map_err(|error| Failure::new(format!("the connection broke off: {error}")))?;
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            Message::Close(frame) => return Ok(exit_code(frame.as_ref().map_or("", |frame| frame.reason.as_str()))),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
        };
        match &bytes[..] {
            [0, 1, output @ ..] => {
                let mut stdout = std::io::stdout().lock();
                if stdout.write_all(output).and_then(|()| stdout.flush()).is_err() {
                    return Ok(0);
                }
            }
            [0, 2, output @ ..] => {
                let mut stderr = std::io::stderr().lock();
                let _closed = stderr.write_all(output).and_then(|()| stderr.flush());
            }
            [2, error @ ..] => {
                let newline = if tty { "\r" } else { "" };
                text::err(&format!("error: {}{newline}", String::from_utf8_lossy(error)));
            }
            // words of the platform; the exit code follows in its own way
            _ => {}
        }
    }
    Ok(CUT_OFF)
}

/// `exit code N` of the close.
fn exit_code(reason: &str) -> u8 {
    let code = reason.strip_prefix("exit code ").and_then(|code| code.parse::<i32>().ok());
    code.map_or(CUT_OFF, |code| u8::try_from(code).unwrap_or(CUT_OFF))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_exit_code_is_the_command_s() {
        assert_eq!((exit_code("exit code 0"), exit_code("exit code 7"), exit_code("going away")), (0, 7, CUT_OFF));
        let frames = vec![Ok(frame(&[1], b"hello")), Ok(Message::Ping(Bytes::new()))];
        assert_eq!(receive(&mut futures_util::stream::iter(frames), false).await.unwrap(), CUT_OFF);
    }
}
