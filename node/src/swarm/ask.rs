//! Small questions: one long-lived stream to each neighbour, on which they are pipelined, and one from it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{AsyncRead, AsyncWrite};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::compat::FuturesAsyncReadCompatExt as _;
use wherry_proto::{
    Answer, Ask, Digest, Holding, Lead, LeadRefusal, List, MAX_TAG_PAGE, Question, Reply, TagPage,
};

use super::codec::{WireError, read_within, write_within};
use super::holdings::Holdings;

/// How many questions to one neighbour may be under way; further ones go unanswered.
pub const MAX_ASKED: usize = 256;

/// How long a link is quiet before the neighbour is asked whether it is there.
pub const PING_TIME: Duration = Duration::from_secs(20);

/// How long a neighbour may take to answer before it counts as gone.
pub const REPLY_TIME: Duration = Duration::from_secs(10);

/// How long an asking neighbour may be quiet: it pings more often than that.
const ASKER_IDLE: Duration = Duration::from_secs(90);

/// A question, and where its answer goes. No answer comes if the neighbour goes away first.
pub(super) struct Asking {
    pub(super) question: Question,
    pub(super) reply: oneshot::Sender<Answer>,
}

type Waiting = Mutex<HashMap<u32, oneshot::Sender<Answer>>>;

/// Puts questions to a neighbour over a stream, until the stream fails. Says why it did.
pub(super) async fn ask<S>(stream: S, questions: &mut mpsc::Receiver<Asking>) -> WireError
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(stream.compat());
    let waiting = Waiting::default();
    let read = async {
        loop {
            // There is always a reply due: to a ping at least.
            match read_within::<Reply>(&mut reader, PING_TIME + REPLY_TIME).await {
                Ok(reply) => {
                    let asker = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&reply.id);
                    if let Some(asker) = asker {
                        let _ = asker.send(reply.answer);
                    }
                }
                Err(why) => return why,
            }
        }
    };
    let write = async {
        for id in 0.. {
            let question = match timeout(PING_TIME, questions.recv()).await {
                Ok(Some(Asking { question, reply })) => {
                    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                    if waiting.len() >= MAX_ASKED {
                        waiting.retain(|_, asker| !asker.is_closed());
                    }
                    if waiting.len() >= MAX_ASKED {
                        continue;
                    }
                    waiting.insert(id, reply);
                    question
                }
                Ok(None) => break,
                Err(_) => Question::Ping,
            };
            if let Err(why) = write_within(&mut writer, &Ask { id, question }, REPLY_TIME).await {
                return why;
            }
        }
        WireError::Io(io::ErrorKind::BrokenPipe.into())
    };
    let why = tokio::select! {
        why = read => why,
        why = write => why,
    };
    let _ = timeout(REPLY_TIME, writer.shutdown()).await;
    why
}

/// Answers a neighbour's questions, one after the other, until the stream ends. Says why it did.
pub(super) async fn answer<S>(stream: S, holdings: Arc<dyn Holdings>) -> WireError
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = stream.compat();
    loop {
        let ask = match read_within::<Ask>(&mut stream, ASKER_IDLE).await {
            Ok(ask) => ask,
            Err(why) => return why,
        };
        let answer = match ask.question {
            Question::Ping => Answer::Pong,
            question => {
                let holdings = Arc::clone(&holdings);
                let look_up = move || look_up(&*holdings, &question);
                match tokio::task::spawn_blocking(look_up).await {
                    Ok(answer) => answer,
                    Err(error) => return WireError::Io(io::Error::other(error)),
                }
            }
        };
        if let Err(why) = write_within(&mut stream, &Reply { id: ask.id, answer }, REPLY_TIME).await {
            return why;
        }
    }
}

fn look_up(holdings: &dyn Holdings, question: &Question) -> Answer {
    let held = |digest: &Digest| holdings.held(digest).map_or(Holding::No, |size| Holding::Held { size });
    match question {
        Question::Ping => Answer::Pong,
        Question::Want(digests) => Answer::Want(List::first_of(digests.iter().map(held))),
        Question::Tag(reference) => Answer::Tag(holdings.tag(reference)),
        Question::Tags { origin, repository, after } => {
            // One more than fits tells whether there are more.
            let found = holdings.tags(origin, repository, after.as_deref(), MAX_TAG_PAGE + 1);
            let more = found.len() > MAX_TAG_PAGE;
            let names = found.into_iter().filter_map(|name| name.try_into().ok());
            Answer::Tags(TagPage { names: List::first_of(names), more })
        }
        Question::Lead { .. } => Answer::Lead(Lead::Refuse(LeadRefusal::NoRoute)),
    }
}
