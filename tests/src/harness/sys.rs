//! The one thing that needs `unsafe`: code between fork and exec.
#![allow(unsafe_code)]

use std::{os::unix::process::CommandExt as _, process::Command};

/// Has the kernel kill the program when the thread that starts it ends, for whatever reason.
pub(super) fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure runs in the child between fork and exec, where only async-signal-safe functions may be
    // called: prctl and getppid are system calls, and an error is made without allocating.
    unsafe {
        command.pre_exec(|| {
            // std changes the user before it runs this, which is right: a change of user clears the setting.
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // The parent may have died before the setting: then nobody will send the signal.
            if libc::getppid() == 1 {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}
