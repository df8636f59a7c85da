package vsock

import (
	"net"
	"syscall"
)

// What connections end with. All but errClosed are what the same comes to with a
// socket of the kernel's.
var (
	errClosed  = net.ErrClosed
	errRefused = error(syscall.ECONNREFUSED)
	errInUse   = error(syscall.EADDRINUSE)
	errPipe    = error(syscall.EPIPE)
)
