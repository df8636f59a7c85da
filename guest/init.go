package guest

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// marker is a file that only an archive made by this package has: being PID 1
// alone is true in any container too.
const marker = "etc/vole-guest"

// failedCode is the status of a Main that cannot go on. PID 1's end is a kernel
// panic, which the host then reports.
const failedCode = 1

// IsInit reports whether this process is PID 1 of a guest that was booted from
// an initramfs of [Archive] or [AgentArchive], and so must call [Main]. It costs one system call in
// any other process.
func IsInit() bool {
	if os.Getpid() != 1 {
		return false
	}
	var st unix.Stat_t
	return unix.Stat("/"+marker, &st) == nil
}

// Main is PID 1: the agent, if the archive is [AgentArchive]'s. It ends the whole guest and does not return, unless something
// fails that leaves nothing else to do; the caller then exits with what it
// returns, and the kernel panics. In a process for which [IsInit] is false it
// returns 1 at once, having done nothing but say so.
func Main() (code int) {
	if !IsInit() {
		fmt.Fprintln(os.Stderr, "vole guest: this process is not PID 1 of a guest of vole's, so it does nothing")
		return failedCode
	}
	up := uptime()
	markBoot()
	if isAgent() {
		return runAgent(up)
	}
	mounts := mountAll()
	con := openConsole()
	defer func() {
		if p := recover(); p != nil {
			con.print(fmt.Sprintf("\nvole guest: internal error: %v\n%s", p, debug.Stack()))
			con.drain()
			code = failedCode
		}
	}()
	cmdline := strings.TrimSpace(readHead(rootFS{}, "proc/cmdline", maxFile))
	w := parseWords(cmdline)
	if w.report {
		f := collect(systemSources(cmdline, up, mounts))
		con.print("\n" + f.report())
	} else {
		con.printFailures(mounts, w)
	}
	con.drain()
	reap()
	err := end(w, cmdline)
	con.print(fmt.Sprintf("vole guest: cannot %s: %v\n", w.next(), err))
	con.drain()
	return failedCode
}

// printFailures says what went wrong, when nobody asked for the report.
func (c console) printFailures(mounts []mount, w words) {
	for _, m := range mounts {
		if m.err != nil {
			c.print(fmt.Sprintf("vole guest: %s on %s: %v\n", m.kind, m.target, m.err))
		}
	}
	for _, word := range w.unknown {
		c.print(fmt.Sprintf("vole guest: %s is not understood\n", word))
	}
}

// reap collects the children that have ended. PID 1 inherits those of others.
func reap() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if err != unix.EINTR && (err != nil || pid == 0) {
			return
		}
	}
}
