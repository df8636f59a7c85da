package guests

import (
	"bytes"
	"context"
	"crypto/md5"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/testdata/nested"
)

// transferBound is how long anything here may take.
const transferBound = time.Hour

// terminal is a pseudo-terminal with a vole command on it.
type terminal struct {
	t             testing.TB
	master, slave *os.File
	before        unix.Termios
	out           *watched
	cmd           *exec.Cmd
	after         unix.Termios  // once done
	done          chan struct{} // closed when the command has ended
}

// startOnTerminal starts the vole command with a terminal of its own for all
// its streams, which is its controlling terminal as well.
func startOnTerminal(t testing.TB, args ...string) *terminal {
	t.Helper()
	p := newTerminal(t)
	ctx, cancel := context.WithTimeout(context.Background(), transferBound)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, asset(t, nested.AssetVole), args...)
	cmd.Env = append(os.Environ(), "VOLE_CACHE="+t.TempDir())
	p.start(cmd)
	return p
}

// newTerminal makes a terminal.
func newTerminal(t testing.TB) *terminal {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	require.NoError(t, err)
	p := &terminal{t: t, master: os.NewFile(uintptr(fd), "/dev/ptmx"), out: newWatched(), done: make(chan struct{})}
	t.Cleanup(func() { p.master.Close() })
	require.NoError(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	require.NoError(t, err)
	p.slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	p.before = p.termios()
	go func() {
		defer p.out.stop()
		for buf := make([]byte, 64<<10); ; {
			n, err := p.master.Read(buf)
			if err != nil {
				return
			}
			_, _ = p.out.Write(buf[:n])
		}
	}()
	return p
}

// start starts a command on the terminal, which is that of all its streams that have
// not been set. It ends with the test.
func (p *terminal) start(cmd *exec.Cmd) {
	p.t.Helper()
	p.cmd = cmd
	if cmd.Stdin == nil {
		cmd.Stdin = p.slave
	}
	if cmd.Stdout == nil {
		cmd.Stdout = p.slave
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.slave
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(p.t, cmd.Start())
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
		if after, err := unix.IoctlGetTermios(int(p.slave.Fd()), unix.TCGETS); err == nil {
			p.after = *after
		}
		// Then the master's reader comes to an end, behind all that was written.
		p.slave.Close()
	}()
	p.t.Cleanup(func() { _ = cmd.Process.Kill(); <-p.done })
}

// resize gives the terminal's window a size.
func (p *terminal) resize(rows, cols uint16) {
	p.t.Helper()
	require.NoError(p.t, unix.IoctlSetWinsize(int(p.slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}))
}

func (p *terminal) termios() unix.Termios {
	p.t.Helper()
	got, err := unix.IoctlGetTermios(int(p.slave.Fd()), unix.TCGETS)
	require.NoError(p.t, err)
	return *got
}

// expect waits for text that comes after all that has been expected before.
func (p *terminal) expect(text string) {
	p.t.Helper()
	if !p.out.untilBeyond(0, text) {
		p.fail(fmt.Sprintf("%q has not come", text))
	}
	p.out.forget(text)
}

// fail ends the test with what came last, of which vole's goroutines are part.
func (p *terminal) fail(why string) {
	p.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGQUIT)
	<-p.done
	p.t.Fatalf("%s; the terminal's last words:\n%s", why, p.out)
}

// forget drops everything up to the end of text.
func (w *watched) forget(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := bytes.Index(w.b, []byte(text)); i >= 0 {
		w.b = w.b[i+len(text):]
	}
}

func (p *terminal) typeIn(b []byte) {
	p.t.Helper()
	require.NoError(p.t, p.master.SetWriteDeadline(time.Now().Add(bootBound)))
	if n, err := p.master.Write(b); err != nil {
		p.fail(fmt.Sprintf("only %d of %d bytes could be typed: %v", n, len(b), err))
	}
}

// wait waits for the command's end, and checks that the terminal is as it was.
func (p *terminal) wait() int {
	p.t.Helper()
	<-p.done
	assert.Equal(p.t, p.before, p.after, "the terminal's settings")
	return p.cmd.ProcessState.ExitCode()
}

// TestTerminal: a shell in the guest, used from a terminal.
func TestTerminal(t *testing.T) {
	initrd := shellInit(t, "setsid sh -c 'exec sh -i </dev/ttyS0 >/dev/ttyS0 2>&1'\npoweroff -f\n")
	p := startOnTerminal(t, machine(t, "", "-i", initrd)...)
	p.expect("# ")
	raw := p.termios()
	assert.Zero(t, raw.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG))
	assert.Zero(t, raw.Oflag&unix.OPOST)

	// What is expected is never what the guest echoes of the typing.
	p.typeIn([]byte("echo $((6*7))-answered\r"))
	p.expect("\r\n42-answered\r\n")
	p.typeIn([]byte("sh -c 'echo st\"\"arted; exec sleep 1000'\r"))
	p.expect("\r\nstarted\r\n")
	p.typeIn([]byte("\x03"))
	p.expect("# ")
	// Ctrl-a reaches the guest only as Ctrl-a a.
	p.typeIn([]byte("stty -icanon -echo; echo re''ady; head -c 3 | hexdump -e '\"got\" 3/1 \" %02x\"'; stty sane\r"))
	p.expect("\r\nready\r\n")
	p.typeIn([]byte("\x01zx\x01ay"))
	p.expect("got 78 01 79")
	p.typeIn([]byte("\x01h"))
	p.expect("Ctrl-a h  this help\r\n")
	p.typeIn([]byte("\r\x01x"))
	assert.Equal(t, 130, p.wait(), p.out)
	p.expect("vole: run: Ctrl-a x: the guest was ended")
}

// amount is how much a test sends of what the whole is: all of it on real KVM and
// in make soak. In the emulated host a byte costs up to half a millisecond.
func amount(whole int) int {
	if !nested.Inside() || nested.CurrentSuite() == nested.SuiteSoak {
		return whole
	}
	if nested.CurrentSuite() == nested.SuiteTest {
		return 16 << 10
	}
	return 128 << 10
}

// noise is n bytes that nothing can compress, repeat or reorder unseen.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1: 7}).Read(b)
	return b
}

func md5Of(b []byte) string { return fmt.Sprintf("%x", md5.Sum(b)) }

// receiver is a user space that takes n bytes from its console, says their
// number and digest and what the driver counted, and powers off. It gives up
// where bytes are lost.
func receiver(t testing.TB, n int) string {
	return shellInit(t, fmt.Sprintf(`stty -F /dev/ttyS0 raw -echo crtscts
echo READY
timeout -s KILL %d head -c %d </dev/ttyS0 >/tmp/got
echo "GOT $(wc -c </tmp/got) MD5 $(md5sum </tmp/got)"
grep '^0:' /proc/tty/driver/serial
poweroff -f
`, 30+n/1000, n))
}

// got is what a receiver says of the data if it has all of it.
func got(data []byte) string { return fmt.Sprintf("GOT %d MD5 %s", len(data), md5Of(data)) }

// TestPaste: much typed at once, and no byte of it lost.
func TestPaste(t *testing.T) {
	data := noise(amount(1 << 20))
	initrd := receiver(t, len(data))
	p := startOnTerminal(t, machine(t, "", "-i", initrd, "--timeout", limit(len(data)).String())...)
	p.expect("READY")
	defer sayNowAndThen(t, func() string { return "the guest takes what is typed" })()
	began := time.Now()
	p.typeIn(bytes.ReplaceAll(data, []byte("\x01"), []byte("\x01a")))
	code := p.wait()
	logRate(t, "in from a terminal", len(data), time.Since(began))
	p.expect(got(data))
	assert.Equal(t, 0, code)
}

// limit is how long a guest that takes or sends n bytes may live.
func limit(n int) time.Duration { return time.Minute + time.Duration(n)*2*time.Millisecond }

// TestPipeIn: the same from a pipe, where Ctrl-a means nothing.
func TestPipeIn(t *testing.T) {
	data := noise(amount(1 << 20))
	initrd := receiver(t, len(data))
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer w.Close()
	ctx, cancel := context.WithTimeout(t.Context(), transferBound)
	defer cancel()
	out := newWatched()
	cmd := exec.CommandContext(ctx, asset(t, nested.AssetVole), machine(t, "", "-i", initrd, "--timeout", limit(len(data)).String())...)
	cmd.Env = append(os.Environ(), "VOLE_CACHE="+t.TempDir())
	var errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r, out, &errs
	require.NoError(t, cmd.Start())
	r.Close()
	require.True(t, out.until("READY"), out)
	defer sayNowAndThen(t, func() string { return "the guest takes what is piped" })()
	began := time.Now()
	require.NoError(t, w.SetWriteDeadline(began.Add(transferBound)))
	_, werr := w.Write(data)
	require.NoError(t, w.Close())
	err = cmd.Wait()
	logRate(t, "in from a pipe", len(data), time.Since(began))
	assert.NoError(t, err)
	assert.NoError(t, werr)
	assert.Contains(t, out.String(), got(data))
	assert.Empty(t, errs.String())
}

func logRate(t testing.TB, what string, n int, took time.Duration) {
	t.Logf("%s: %d KiB in %.1f s, %.1f KiB/s", what, n>>10, took.Seconds(), float64(n)/1024/took.Seconds())
}

// Marks around what a sender sends.
const (
	beginMark = "<BEGIN>"
	endMark   = "<END>"
)

// sender is a user space that writes data to its console and powers off.
func sender(t testing.TB, data []byte) string {
	return shellInitWith(t, map[string][]byte{"/data": data}, `stty -F /dev/ttyS0 raw -echo
printf '`+beginMark+`' >/dev/ttyS0
cat /data >/dev/ttyS0
printf '`+endMark+`' >/dev/ttyS0
poweroff -f
`)
}

// sent runs a peer with a sender, checks that all arrives, and returns the time
// from the first mark to the last.
func sent(t testing.TB, p peer, j job, data []byte) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit(len(data)))
	defer cancel()
	cmd, err := p.command(ctx, j)
	require.NoError(t, err)
	var out timed
	var errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	defer sayNowAndThen(t, func() string { return p.name + " prints" })()
	err = cmd.Run()
	_, got, _ := strings.Cut(out.b.String(), beginMark)
	got, _, whole := strings.Cut(got, endMark)
	require.True(t, whole, "%s: %d bytes came, then the guest ended: %v: %s", p.name, len(got), err, last(errs.String()))
	require.NoError(t, err, "%s: %s", p.name, last(errs.String()))
	require.Equal(t, len(data), len(got), p.name)
	require.Equal(t, md5Of(data), md5Of([]byte(got)), p.name)
	return out.end.Sub(out.begin)
}

// timed collects output and notes when its marks have come.
type timed struct {
	b          bytes.Buffer
	begin, end time.Time
}

func (w *timed) Write(p []byte) (int, error) {
	w.b.Write(p)
	if w.begin.IsZero() && bytes.Contains(w.b.Bytes(), []byte(beginMark)) {
		w.begin = time.Now()
	}
	tail := w.b.Bytes()[max(0, w.b.Len()-len(p)-len(endMark)):]
	if w.end.IsZero() && bytes.Contains(tail, []byte(endMark)) {
		w.end = time.Now()
	}
	return len(p), nil
}

func senderJob(t testing.TB, data []byte) job {
	j := newJob(t, nested.KernelDefault, "quiet")
	j.initrd = sender(t, data)
	return j
}

// TestMuchOutput: much printed by the guest, and no byte of it lost.
func TestMuchOutput(t *testing.T) {
	data := noise(amount(10 << 20))
	j := senderJob(t, data)
	logRate(t, "out", len(data), sent(t, voleWarm, j, data))
}

// BenchmarkConsoleOutput times output from the guest's user space to stdout,
// beside QEMU's, interleaved: 10 MiB on real KVM.
func BenchmarkConsoleOutput(b *testing.B) {
	data := noise(amount(10 << 20))
	peers := []peer{voleWarm, qemuMicro}
	for b.Loop() {
		j := senderJob(b, data)
		took := make([][]time.Duration, len(peers))
		for range min(rounds(), 3) {
			for i, p := range peers {
				took[i] = append(took[i], sent(b, p, j, data))
			}
		}
		for i, p := range peers {
			rate := float64(len(data)) / (1 << 20) / median(took[i]).Seconds()
			b.Logf("%-14s %8s  %.4f MiB/s", p.name, seconds(median(took[i])), rate)
			b.ReportMetric(rate, p.name+"-MiB/s")
		}
		b.ReportMetric(float64(median(took[1]))/float64(median(took[0])), "times-qemu's-rate")
	}
}
