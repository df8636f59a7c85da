// Package vsock is the virtio socket device: stream connections between the
// guest and the host without a network, in user space, so that it needs neither
// /dev/vhost-vsock nor any privilege.
//
// # The host's side
//
// A Go program calls [Device.Dial] and [Device.Listen], which give a net.Conn
// and a net.Listener with deadlines and half-close ([Conn]). Other programs use
// Unix sockets, by the protocol that other virtual machine monitors speak too
// ([Device.ServeUnix]): a client connects to PATH, says "CONNECT 1024\n" and is
// answered "OK 1073741824\n" once the guest has accepted; a connection from the
// guest to port 1024 goes to the socket PATH_1024. A port with a Go listener
// never goes to a Unix socket.
//
// # How data flows
//
// The tx queue has a goroutine that takes the guest's packets. It never waits
// for buffers of the rx queue: what it has to answer is a bit of the
// connection, or an entry in a bounded list of resets. Data goes straight to the
// reader's memory or socket; what has no room there waits in the connection's
// buffer, whose size is the credit that the guest was given, so that a reader
// that never reads stalls its own connection and no other.
//
// Whoever has something for the guest puts the connection in line and sends for
// the whole line if nobody else is at it ([Device.pump]): a Write, a Read that
// has freed credit, the tx queue's goroutine, the one that watches the Unix
// sockets, or the rx queue's when the guest has given buffers. Connections take
// turns of at most 64 KiB. Data goes from the writer's memory, or from the socket
// by readv, into guest memory.
//
// # Trust
//
// A packet's header is copied once and then checked. What breaks the rules ends
// its connection with a reset; a sender that is not this guest is ignored. The
// number of connections is bounded, and with it all memory.
//
// # Left out
//
// Seqpacket sockets, and connections of the guest to any CID but the host's.
//
// The device follows VIRTIO 1.2, section 5.10 (Socket Device).
package vsock
