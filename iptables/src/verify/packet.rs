//! Frames on one interface (packet(7)).
#![allow(unsafe_code)]

use std::{
    io::{self, Read},
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// `ETH_P_ALL` (linux/if_ether.h).
const ALL: u16 = 3;

/// What goes through an interface, both ways.
pub(super) struct Frames {
    socket: Socket,
}

impl Frames {
    /// Those of the interface with this index.
    pub(super) fn of(interface: u32) -> io::Result<Self> {
        // Without a protocol nothing is heard before the socket is bound.
        let socket = Socket::new(Domain::PACKET, Type::RAW.cloexec(), Some(Protocol::from(0)))?;
        socket.bind(&address(interface)?)?;
        Ok(Self { socket })
    }

    /// Sends one.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(|_| ())
    }

    /// The next one, if it comes within this time.
    pub(super) fn next(&mut self, within: Duration) -> io::Result<Option<Vec<u8>>> {
        // Zero would be for ever.
        self.socket.set_read_timeout(Some(within.max(Duration::from_millis(1))))?;
        let mut frame = vec![0; 2048];
        match (&self.socket).read(&mut frame) {
            Ok(length) => {
                frame.truncate(length);
                Ok(Some(frame))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn address(interface: u32) -> io::Result<SockAddr> {
    let index = i32::try_from(interface).map_err(io::Error::other)?;
    // SAFETY: the storage is large enough for every kind of address and zeroed by `try_init`; a `sockaddr_ll` may be
    // zero in all that is not set here, and the length is that of what was written.
    let made = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = storage.cast::<libc::sockaddr_ll>();
            (*link).sll_family = libc::AF_PACKET as libc::sa_family_t;
            (*link).sll_protocol = ALL.to_be();
            (*link).sll_ifindex = index;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    };
    made.map(|((), address)| address)
}
