package usernet

import (
	"os"
	"syscall"
)

// What callers of Dial find with errors.Is.
var (
	errRefused error = syscall.ECONNREFUSED
	errReset   error = syscall.ECONNRESET
	errTimeout error = os.ErrDeadlineExceeded
)
