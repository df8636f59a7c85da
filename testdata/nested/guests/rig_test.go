package guests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/boot/initramfs"
	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/testdata/nested"
)

// bootBound is how long one guest may take. A boot takes about five seconds in
// the emulated host.
const bootBound = 4 * time.Minute

func asset(t testing.TB, name string) string {
	t.Helper()
	path, err := nested.Asset(name)
	require.NoError(t, err)
	return path
}

// needKernel is asset for a kernel that not every mirror has.
func needKernel(t testing.TB, name string) string {
	t.Helper()
	path, err := nested.Asset(name)
	if err != nil {
		t.Skipf("the archive offers no %s: %v", name, err)
	}
	return path
}

// filled keeps one kernel cache for all tests: unpacking XZ takes long in the
// emulated host.
var filled struct {
	sync.Mutex
	dir  string
	done map[string]error
}

// cacheWith returns a cache that holds the kernel's vmlinux.
func cacheWith(t testing.TB, path string) *kernel.Cache {
	t.Helper()
	filled.Lock()
	defer filled.Unlock()
	if filled.dir == "" {
		dir, err := os.MkdirTemp("", "vole-guests-cache-")
		require.NoError(t, err)
		filled.dir, filled.done = dir, map[string]error{}
	}
	c, err := kernel.NewCache(filepath.Join(filled.dir, "kernels"))
	require.NoError(t, err)
	if _, ok := filled.done[path]; !ok {
		filled.done[path] = c.Fill(path)
	}
	require.NoError(t, filled.done[path])
	return c
}

// initWith makes an initramfs of busybox and a script for /init, and returns
// its path.
func initWith(t testing.TB, script string) string {
	t.Helper()
	busybox, err := os.ReadFile(asset(t, nested.AssetBusybox))
	require.NoError(t, err)
	var a initramfs.Archive
	for _, dir := range []string{"/bin", "/proc", "/sys", "/dev", "/tmp"} {
		require.NoError(t, a.Dir(dir, 0o755))
	}
	require.NoError(t, a.CharDevice("/dev/console", 0o600, 5, 1))
	require.NoError(t, a.Bytes("/bin/busybox", 0o755, busybox))
	require.NoError(t, a.Bytes("/init", 0o755, []byte(script)))
	path := filepath.Join(t.TempDir(), "initrd.cpio")
	f, err := os.Create(path)
	require.NoError(t, err)
	_, err = a.Image().WriteTo(f)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return path
}

// shellInit is initWith for a script that may use all of busybox.
func shellInit(t testing.TB, script string) string {
	t.Helper()
	return initWith(t, "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\n"+
		"mount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev\n"+script)
}

// result is what came of a vole command.
type result struct {
	code           int
	stdout, stderr string
}

// vole runs the vole command and returns its end. The run is bounded by
// bootBound.
func vole(t testing.TB, args ...string) result {
	t.Helper()
	return start(t, args...).wait()
}

// voleWithin is vole with another bound.
func voleWithin(t testing.TB, bound time.Duration, args ...string) result {
	t.Helper()
	return startWithin(t, bound, args...).wait()
}

// running is a vole command that runs.
type running struct {
	t      testing.TB
	cmd    *exec.Cmd
	out    *watched
	errs   bytes.Buffer
	ctx    context.Context // nil for none
	cancel context.CancelFunc
}

func start(t testing.TB, args ...string) *running {
	t.Helper()
	return startWithin(t, bootBound, args...)
}

// startWithin starts a vole command that is killed after bound.
func startWithin(t testing.TB, bound time.Duration, args ...string) *running {
	t.Helper()
	r := prepare(t, bound, args...)
	require.NoError(t, r.cmd.Start())
	return r
}

// startTyped is start for a guest at whose console the test types.
func startTyped(t testing.TB, args ...string) (*running, io.Writer) {
	t.Helper()
	r := prepare(t, bootBound, args...)
	keys, err := r.cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, r.cmd.Start())
	return r, keys
}

// prepare is startWithin without the start.
func prepare(t testing.TB, bound time.Duration, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	r := &running{t: t, out: newWatched(), cancel: cancel}
	r.cmd = exec.CommandContext(ctx, asset(t, nested.AssetVole), args...)
	r.cmd.Env = append(os.Environ(), "VOLE_CACHE="+filepath.Join(t.TempDir(), "cache"))
	r.cmd.Stdout, r.cmd.Stderr = r.out, &r.errs
	// One that takes too long shows where it is.
	r.cmd.Cancel = func() error { return r.cmd.Process.Signal(syscall.SIGQUIT) }
	r.cmd.WaitDelay = 30 * time.Second
	r.ctx = ctx
	t.Cleanup(cancel)
	return r
}

func (r *running) wait() result {
	r.t.Helper()
	stop := sayNowAndThen(r.t, func() string { return fmt.Sprintf("the guest runs; its console has %d bytes", len(r.out.String())) })
	err := r.cmd.Wait()
	stop()
	if r.ctx != nil && errors.Is(r.ctx.Err(), context.DeadlineExceeded) {
		require.Fail(r.t, "vole took too long", "console: %s\nstderr: %s", r.out.String(), r.errs.String())
	}
	r.cancel()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(r.t, err)
	}
	res := result{code: r.cmd.ProcessState.ExitCode(), stdout: r.out.String(), stderr: r.errs.String()}
	require.NotEqual(r.t, -1, res.code, "vole was killed: %v\nconsole: %s\nstderr: %s", r.cmd.ProcessState, res.stdout, res.stderr)
	return res
}

// sayNowAndThen says every minute what is going on, until the function that it
// returns is called: the rig takes a long silence for the end.
func sayNowAndThen(t testing.TB, what func() string) (stop func()) {
	done, said := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(said)
		tick := time.NewTicker(time.Minute)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				t.Log(what())
			}
		}
	}()
	return func() {
		close(done)
		<-said
	}
}

// watched collects output and wakes who waits for some of it.
type watched struct {
	mu   sync.Mutex
	more sync.Cond
	b    []byte
	end  bool
}

func newWatched() *watched {
	w := &watched{}
	w.more.L = &w.mu
	return w
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b = append(w.b, p...)
	w.more.Broadcast()
	return len(p), nil
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.b)
}

// stop wakes those who wait for what will not come any more.
func (w *watched) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end = true
	w.more.Broadcast()
}

// until waits for text and returns whether it came before bootBound.
func (w *watched) until(text string) bool {
	t := time.AfterFunc(bootBound, w.stop)
	defer t.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	for !bytes.Contains(w.b, []byte(text)) {
		if w.end {
			return false
		}
		w.more.Wait()
	}
	return true
}

// number finds the one group of pattern in text.
func number(t testing.TB, pattern, text string) int {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	require.NotNil(t, m, "%s is not in:\n%s", pattern, text)
	n, err := strconv.Atoi(m[1])
	require.NoError(t, err)
	return n
}

// lines splits a console's output, which ends its lines in CR LF.
func lines(console string) []string {
	return strings.Split(strings.ReplaceAll(console, "\r\n", "\n"), "\n")
}
