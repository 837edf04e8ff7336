//! Asking a person at a terminal.

use std::io::{self, BufRead, IsTerminal, Write};

use backstay_ops::Error;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::app::Result;

/// Whether somebody is there who could answer.
pub fn somebody_is_there() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// What is typed in answer to `question`, without showing it.
fn unseen(question: &str) -> Result<Zeroizing<String>> {
    let failed = |error: io::Error| Error::io("read from", "the terminal", error);
    let _ = write!(io::stderr(), "{question}: ");
    let stdin = io::stdin();
    let before = tcgetattr(&stdin).map_err(|error| failed(error.into()))?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    silent.local_modes.insert(LocalModes::ECHONL);
    tcsetattr(&stdin, OptionalActions::Flush, &silent).map_err(|error| failed(error.into()))?;
    let mut line = Zeroizing::new(String::new());
    let read = stdin.lock().read_line(&mut line);
    // Whatever happened, what is typed next has to show again.
    tcsetattr(&stdin, OptionalActions::Now, &before).map_err(|error| failed(error.into()))?;
    read.map_err(failed)?;
    Ok(Zeroizing::new(line.trim_end_matches(['\r', '\n']).to_owned()))
}

/// A new passphrase, typed twice.
pub fn new_passphrase() -> Result<Zeroizing<String>> {
    let first = unseen("New passphrase")?;
    if first.is_empty() {
        return Err(Error::usage("the passphrase is empty", "nothing was changed"));
    }
    if *first != *unseen("The same again")? {
        return Err(Error::usage(
            "the two passphrases differ",
            "nothing was changed; run the same command again",
        ));
    }
    Ok(first)
}
