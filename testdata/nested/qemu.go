package nested

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The bounds of one emulated host. Each is generous: a busy machine runs the
// emulation at a fraction of its speed.
const (
	readyTimeout = 3 * time.Minute  // from QEMU's start until init reports
	aliveTimeout = 90 * time.Second // between two frames of any kind
	dumpTimeout  = 30 * time.Second // from the wish for a goroutine dump until the end
)

// consoleKeep is how much of the kernel's console is kept for messages.
const consoleKeep = 64 << 10

// ErrHost is the emulated host's own failure.
var ErrHost = errors.New("nested: the emulated host failed")

// Ways in which an emulated host may end before its command has.
var (
	errLockup  = fmt.Errorf("%w: it locked up", ErrHost)
	errSilent  = fmt.Errorf("%w: it fell silent", ErrHost)
	errVanish  = fmt.Errorf("%w: QEMU ended before the command did", ErrHost)
	errStalled = errors.New("nested: the command gave no output for too long")
	errTimeout = errors.New("nested: the time allowed is over")
)

// machine is one run of the emulated host.
type machine struct {
	kernel, initrd string
	memory         string // as QEMU takes it
	disk           string // path of an image; "" is no disk
	stdin          io.Reader
	stdout, stderr io.Writer
	store          func(fileHead, []byte) error // takes a file that came back
	quiet          time.Duration                // longest time without output; 0 is no bound
	deadline       time.Time                    // zero is no bound
	onReady        func(ready)

	console console
	channel frameWriter
}

// args are QEMU's, after the program. One CPU of the three is the boot CPU,
// which the command does not get (see startOffBootCPU).
func (m *machine) args() []string {
	words := []string{
		"console=ttyS0", "loglevel=5", "panic=-1", "softlockup_panic=1", "transparent_hugepage=madvise",
		// The kernel's check of the timer panics where a busy machine delays the ticks.
		"no_timer_check",
		"random.trust_cpu=on", initMarker + "=1", os.Getenv(envAppend),
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm", "-smp", "3", "-m", m.memory,
		"-kernel", m.kernel, "-initrd", m.initrd, "-append", strings.Join(words, " "),
		"-serial", "stdio",
		"-chardev", "socket,id=channel,fd=3", "-serial", "chardev:channel",
	}
	if m.disk != "" {
		args = append(args, "-drive", "if=none,id=disk,format=raw,discard=unmap,file="+m.disk, "-device", "virtio-blk-pci,drive=disk")
	}
	return args
}

// event is what the goroutines that watch QEMU tell the one that decides.
type event struct {
	frame frameType
	data  []byte
	err   error // the channel's end
	dead  bool  // QEMU has ended
}

// run boots the emulated host, runs the command in it and returns how that
// ended. An error means that it did not end by itself.
func (m *machine) run(ctx context.Context) (exitInfo, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return exitInfo{}, fmt.Errorf("nested: create the channel: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "channel"), os.NewFile(uintptr(fds[1]), "channel")
	defer ours.Close()
	cmd, err := QEMUCommand(context.WithoutCancel(ctx), m.args()...)
	if err != nil {
		theirs.Close()
		return exitInfo{}, err
	}
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stdout, cmd.Stderr = &m.console, &m.console
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL, Setpgid: true}

	events := make(chan event, 16)
	done := make(chan struct{})
	defer close(done)
	send := func(e event) {
		select {
		case events <- e:
		case <-done:
		}
	}
	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		// Pdeathsig is tied to the thread that starts the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	err = <-started
	theirs.Close()
	if err != nil {
		return exitInfo{}, fmt.Errorf("nested: start QEMU: %w", err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		<-ended
	}()
	m.channel.w = ours
	go func() {
		r := bufio.NewReaderSize(ours, 128<<10)
		for {
			t, p, err := readFrame(r)
			send(event{frame: t, data: p, err: err})
			if err != nil {
				break
			}
		}
		<-ended // after the last frame: what QEMU has sent is read though it is gone
		send(event{dead: true})
	}()
	return m.watch(ctx, cmd, events)
}

// watch handles events until the command has ended or a bound is reached.
func (m *machine) watch(ctx context.Context, cmd *exec.Cmd, events <-chan event) (exitInfo, error) {
	var (
		file   fileHead
		body   bytes.Buffer
		why    error // set once a dump was asked for
		inside bool
	)
	heard, spoke := time.Now(), time.Now()
	limit := readyTimeout
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	var dump time.Time
	ask := func(reason error) {
		if why == nil {
			why, dump = reason, time.Now()
			_ = m.channel.send(frameQuit, nil)
		}
	}
	cancelled := ctx.Done()
	for {
		select {
		case <-cancelled:
			cancelled = nil
			if !inside || !errors.Is(context.Cause(ctx), errTimeout) {
				return exitInfo{}, context.Cause(ctx)
			}
			ask(errTimeout)
		case now := <-tick.C:
			switch {
			case m.console.lockedUp() && now.Sub(heard) > 5*time.Second:
				return exitInfo{}, errLockup
			case now.Sub(heard) > limit:
				return exitInfo{}, fmt.Errorf("%w: nothing from it for %v", errSilent, limit)
			case why != nil && now.Sub(dump) > dumpTimeout:
				return exitInfo{}, fmt.Errorf("%w, and it did not end within %v of SIGQUIT", why, dumpTimeout)
			case inside && !m.deadline.IsZero() && now.After(m.deadline):
				ask(errTimeout)
			case inside && m.quiet > 0 && now.Sub(spoke) > m.quiet:
				ask(fmt.Errorf("%w (%v)", errStalled, m.quiet))
			}
		case e := <-events:
			if e.dead || errors.Is(e.err, io.EOF) || errors.Is(e.err, io.ErrUnexpectedEOF) || errors.Is(e.err, unix.ECONNRESET) {
				if m.console.lockedUp() {
					return exitInfo{}, errLockup
				}
				if e.dead {
					return exitInfo{}, fmt.Errorf("%w: %v", errVanish, cmd.ProcessState)
				}
				// QEMU has closed the channel and is about to end.
				heard, limit = time.Now(), 5*time.Second
				continue
			}
			if e.err != nil {
				return exitInfo{}, e.err
			}
			heard = time.Now()
			switch e.frame {
			case frameReady:
				var r ready
				if err := json.Unmarshal(e.data, &r); err != nil {
					return exitInfo{}, fmt.Errorf("%w: %w", errFrame, err)
				}
				inside, limit, spoke = true, aliveTimeout, time.Now()
				if m.onReady != nil {
					m.onReady(r)
				}
				if m.stdin != nil {
					go m.feed(m.stdin)
				} else {
					_ = m.channel.send(frameEOF, nil)
				}
			case frameStdout, frameStderr:
				spoke = time.Now()
				w := m.stdout
				if e.frame == frameStderr {
					w = m.stderr
				}
				if _, err := w.Write(e.data); err != nil {
					return exitInfo{}, fmt.Errorf("nested: write the command's output: %w", err)
				}
			case frameFile:
				file = fileHead{}
				body.Reset()
				if err := json.Unmarshal(e.data, &file); err != nil {
					return exitInfo{}, fmt.Errorf("%w: %w", errFrame, err)
				}
				if err := m.complete(file, &body); err != nil {
					return exitInfo{}, err
				}
			case frameData:
				body.Write(e.data)
				if err := m.complete(file, &body); err != nil {
					return exitInfo{}, err
				}
			case frameExit:
				var x exitInfo
				if err := json.Unmarshal(e.data, &x); err != nil {
					return exitInfo{}, fmt.Errorf("%w: %w", errFrame, err)
				}
				if x.Err != "" {
					return x, fmt.Errorf("nested: the emulated host's init: %s", x.Err)
				}
				return x, why
			}
		}
	}
}

// complete stores a file once all of it has come.
func (m *machine) complete(f fileHead, body *bytes.Buffer) error {
	switch {
	case int64(body.Len()) > f.Size:
		return fmt.Errorf("%w: %s has more bytes than announced", errFrame, f.Path)
	case int64(body.Len()) < f.Size || m.store == nil:
		return nil
	}
	return m.store(f, body.Bytes())
}

// feed sends the command its stdin.
func (m *machine) feed(r io.Reader) {
	buf := make([]byte, 4<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && m.channel.send(frameStdin, buf[:n]) != nil {
			return
		}
		if err != nil {
			_ = m.channel.send(frameEOF, nil)
			return
		}
	}
}

// console keeps the end of what the emulated host's kernel says.
type console struct {
	mu     sync.Mutex
	tail   []byte
	line   []byte
	locked bool
	log    io.Writer
}

// Write takes the console's bytes; it never fails.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.log != nil {
		_, _ = c.log.Write(p)
	}
	c.tail = append(c.tail, p...)
	if over := len(c.tail) - consoleKeep; over > 0 {
		c.tail = append(c.tail[:0], c.tail[over:]...)
	}
	for _, b := range p {
		if b != '\n' {
			if len(c.line) < 4096 {
				c.line = append(c.line, b)
			}
			continue
		}
		if isLockup(string(c.line)) {
			c.locked = true
		}
		c.line = c.line[:0]
	}
	return len(p), nil
}

// isLockup recognises what a kernel prints when one of its CPUs is stuck.
func isLockup(line string) bool {
	for _, words := range []string{"BUG: soft lockup", "soft lockup: hung tasks", "Watchdog detected hard LOCKUP", "rcu_preempt kthread starved", "rcu_sched kthread starved"} {
		if strings.Contains(line, words) {
			return true
		}
	}
	return false
}

func (c *console) lockedUp() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.locked
}

// last is the end of the console, at most n lines, without what QEMU always
// says about the CPU that it is asked to emulate.
func (c *console) last(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(string(c.tail), "\r", "")), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, "TCG doesn't support requested feature") })
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}

// storeBelow returns a machine's store function that accepts the files named,
// and what is below the directories named, and nothing else.
func storeBelow(roots []string) func(fileHead, []byte) error {
	return func(f fileHead, data []byte) error {
		clean := filepath.Clean(f.Path)
		for _, root := range roots {
			if clean != root && !strings.HasPrefix(clean, root+"/") {
				continue
			}
			if err := os.MkdirAll(filepath.Dir(clean), 0o755); err != nil {
				return fmt.Errorf("nested: store a result: %w", err)
			}
			if err := os.WriteFile(clean, data, os.FileMode(f.Mode).Perm()|0o600); err != nil {
				return fmt.Errorf("nested: store a result: %w", err)
			}
			return nil
		}
		return fmt.Errorf("nested: the emulated host sent %s, which nobody asked for", f.Path)
	}
}
