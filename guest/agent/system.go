package agent

import (
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// uptime is the time since the kernel started its clock.
func uptime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// release is the kernel's, as uname -r has it.
func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// clockSlack is how far the clock may be off before it is set: a clock that jumps is
// worse than one that is a little wrong.
const clockSlack = 10 * time.Millisecond

// setClock sets the clock to a time in nanoseconds since 1970, which was right when it was
// sent. That is not longer than age ago.
func setClock(sent int64, age time.Duration) error {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &ts); err == nil {
		var off bool
		if sent, off = clockStep(ts.Nano(), sent, age); !off {
			return nil
		}
	}
	ts = unix.NsecToTimespec(sent)
	return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
}

// clockStep is the time to set a clock to that shows now, if it is off by more than
// clockSlack: the next to now of those that it can be, so that it is never worse than before.
func clockStep(now, sent int64, age time.Duration) (set int64, off bool) {
	switch latest := sent + int64(age); {
	case now < sent-int64(clockSlack):
		return sent, true
	case now > latest+int64(clockSlack):
		return latest, true
	}
	return 0, false
}

// Limits of open files that commands have: the soft one is the kernel's, since
// programs loop over it, the hard one what services have on a distribution.
const (
	softFiles = 1024
	hardFiles = 1 << 20
)

// limits gives this process the limits that its children inherit. What the kernel
// refuses stays as it is.
func limits() {
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: softFiles, Max: hardFiles})
}

// immune has signals do nothing to this process that would end it: the kernel keeps
// those from PID 1 that it does not handle, but Go's runtime handles all. To ignore
// them is not the same, for children would ignore them too.
func immune() {
	signal.Notify(make(chan os.Signal, 1),
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGILL, unix.SIGTRAP, unix.SIGABRT, unix.SIGBUS, unix.SIGFPE,
		unix.SIGSEGV, unix.SIGTERM, unix.SIGSYS, unix.SIGXCPU, unix.SIGXFSZ)
}
