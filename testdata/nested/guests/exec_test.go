package guests

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
	"github.com/vole-vmm/vole/vmm/harness"
)

// execPairs are the kernels and transports that commands run on, in turn.
var execPairs = []struct{ kernel, transport string }{
	{nested.KernelCloud61, "pci"}, {nested.KernelGeneric61, "mmio"}, {nested.KernelCloud612, "pci"},
	{nested.KernelCloud61, "mmio"}, {nested.KernelGeneric61, "pci"}, {nested.KernelCloud612, "mmio"},
}

// execed is a `vole exec` to be.
type execed struct {
	tmp string // its TMPDIR, in which it must leave nothing
	*exec.Cmd
}

// execVole prepares `vole exec FLAGS -- COMMAND` on the execPairs of that turn.
func execVole(t testing.TB, turn int, flags []string, command ...string) *execed {
	t.Helper()
	pair := execPairs[turn%len(execPairs)]
	if _, err := nested.Asset(pair.kernel); err != nil {
		pair.kernel = nested.KernelDefault
	}
	kernel := asset(t, pair.kernel)
	return execKernel(t, kernel, cacheWith(t, kernel).Dir(), append([]string{"--transport", pair.transport}, flags...), command...)
}

// execKernel is execVole for any kernel and cache.
func execKernel(t testing.TB, kernel, cache string, flags []string, command ...string) *execed {
	t.Helper()
	tools(t)
	ctx, cancel := context.WithTimeout(context.Background(), bootBound)
	t.Cleanup(cancel)
	e := &execed{tmp: t.TempDir()}
	args := slices.Concat([]string{"exec", "-k", kernel}, flags, []string{"--"}, command)
	e.Cmd = exec.CommandContext(ctx, asset(t, nested.AssetVole), args...)
	e.Env = append(os.Environ(), "VOLE_CACHE="+cache, "TMPDIR="+e.tmp, "PATH="+programs)
	t.Cleanup(func() {
		left, err := os.ReadDir(e.tmp)
		require.NoError(t, err)
		assert.Empty(t, left, "vole exec has left something in TMPDIR")
	})
	return e
}

// within gives it another time than bootBound, before it begins.
func (e *execed) within(t testing.TB, bound time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	t.Cleanup(cancel)
	env := e.Env
	e.Cmd = exec.CommandContext(ctx, e.Path, e.Args[1:]...)
	e.Env = env
}

// programs is the PATH of what runs in guests.
const programs = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"

var makeTools sync.Once

// tools gives the emulated host, which a guest of `vole exec` has the files of, the
// programs that are used here. Any other host has them.
func tools(t testing.TB) {
	t.Helper()
	if !nested.Inside() {
		return
	}
	makeTools.Do(func() {
		program := asset(t, nested.AssetBusybox)
		list, err := exec.Command(program, "--list").Output()
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll("/bin", 0o755))
		for _, name := range strings.Fields(string(list)) {
			require.NoError(t, os.Symlink(program, filepath.Join("/bin", name)))
		}
		require.NoError(t, os.MkdirAll("/etc", 0o755))
		require.NoError(t, os.WriteFile("/etc/passwd", []byte("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"), 0o644))
		require.NoError(t, os.WriteFile("/etc/group", []byte("root:x:0:\nnogroup:x:65534:\nplugdev:x:46:nobody\n"), 0o644))
	})
}

// result runs it to its end.
func (e *execed) result(t testing.TB) result {
	t.Helper()
	return e.begin(t).wait()
}

// begin starts it.
func (e *execed) begin(t testing.TB) *running {
	t.Helper()
	r := &running{t: t, cmd: e.Cmd, out: newWatched(), cancel: func() {}}
	if e.Stdout == nil {
		e.Stdout = r.out
	}
	if e.Stderr == nil {
		e.Stderr = &r.errs
	}
	require.NoError(t, e.Start())
	return r
}

// TestExecCodes: the command's exit code is that of vole, and 128 and the signal's
// number if one has killed it; and vole says nothing. Four at a time.
func TestExecCodes(t *testing.T) {
	places := make(chan struct{}, 4)
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	cases := map[string]int{
		"true": 0, "false": 1, "exit 2": 2, "exit 120": 120, "exit 127": 127, "exit 255": 255,
		"kill -KILL $$": 137, "kill -SEGV $$": 139, "kill -PIPE $$": 141, "kill -TERM $$": 143,
	}
	for range 2 {
		code := random.IntN(256)
		cases[fmt.Sprintf("exit %d", code)] = code
	}
	turn := 0
	for script, want := range cases {
		e := execVole(t, turn, nil, "sh", "-c", script)
		turn++
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			places <- struct{}{}
			defer func() { <-places }()
			assert.Equal(t, result{code: want}, e.result(t))
		})
	}
}

// TestExecCmdline: the kernel's command line is ours with the user's words behind it,
// which win.
func TestExecCmdline(t *testing.T) {
	t.Parallel()
	for words, notests := range map[string]string{"": "Y", "vole.word cryptomgr.notests=0": "N"} {
		t.Run(notests, func(t *testing.T) {
			t.Parallel()
			r := execVole(t, 1, []string{"--append", words}, "sh", "-c", "cat /proc/cmdline /sys/module/cryptomgr/parameters/notests").result(t)
			assert.Equal(t, result{stdout: strings.TrimSpace(harness.DefaultCmdline+" "+words) + "\n" + notests + "\n"}, r)
		})
	}
}

// TestExecStreams: stdin, stdout and stderr each by itself and every byte of it.
func TestExecStreams(t *testing.T) {
	t.Parallel()
	in, errs := noise(int(whole(4<<20, 100<<20))), noise(int(whole(1<<20, 100<<20)))
	dir := t.TempDir()
	file := filepath.Join(dir, "noise")
	require.NoError(t, os.WriteFile(file, errs, 0o644))
	e := execVole(t, 1, nil, "sh", "-c", `cat "$1" >&2 & cat; wait; exit 3`, "sh", file)
	e.Stdin = bytes.NewReader(in)
	out, stderr := sha256.New(), sha256.New()
	e.Stdout, e.Stderr = out, stderr
	assert.Equal(t, 3, e.result(t).code)
	assert.Equal(t, sum(in), sum2(out), "stdout")
	assert.Equal(t, sum(errs), sum2(stderr), "stderr")
}

func sum(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

func sum2(h interface{ Sum([]byte) []byte }) string { return fmt.Sprintf("%x", h.Sum(nil)) }

// TestExecPipes: in a shell's pipeline, as the first and as the last of it.
func TestExecPipes(t *testing.T) {
	t.Run("last", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "noise"), noise(1<<20), 0o644))
		archive, err := exec.Command(asset(t, nested.AssetBusybox), "tar", "-c", "-C", dir, ".").Output()
		require.NoError(t, err)
		e := execVole(t, 2, nil, "sha256sum")
		inShell(e, `tar -c -C "$DIR" . | "$@"`)
		e.Env = append(e.Env, "DIR="+dir)
		assert.Equal(t, result{stdout: sum(archive) + "  -\n"}, e.result(t))
	})
	t.Run("who reads stdout ends first", func(t *testing.T) {
		t.Parallel()
		e := execVole(t, 3, nil, "sh", "-c", "yes; echo $? >&2")
		inShell(e, `{ "$@"; echo $? >&2; } | head -n 2`)
		r := e.result(t)
		assert.Equal(t, "y\ny\n", r.stdout)
		// yes was killed by SIGPIPE in the guest, and the shell there ended as it ends here.
		assert.Equal(t, "141\n0\n", r.stderr)
	})
	t.Run("stdin is closed, and there is no terminal", func(t *testing.T) {
		t.Parallel()
		e := execVole(t, 4, nil, "sh", "-c", `cat; echo $?; (: </dev/tty) 2>/dev/null || echo no tty; tty`)
		inShell(e, `exec "$@" <&-`)
		e.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		assert.Equal(t, result{code: 1, stdout: "0\nno tty\nnot a tty\n"}, e.result(t))
	})
	t.Run("stdout is full", func(t *testing.T) {
		nested.RequireSuite(t, nested.SuiteMatrix)
		t.Parallel()
		e := execVole(t, 0, nil, "yes")
		inShell(e, `exec "$@" >/dev/full`)
		assert.Equal(t, result{code: 125, stderr: "vole: exec: stdout: no space left on device\n"}, e.result(t))
	})
	t.Run("stdin is a directory", func(t *testing.T) {
		nested.RequireSuite(t, nested.SuiteMatrix)
		t.Parallel()
		e := execVole(t, 1, nil, "sh", "-c", "cat; exit 3")
		inShell(e, `exec "$@" </`)
		assert.Equal(t, result{code: 3, stderr: "vole: exec: warning: stdin: is a directory: the command's input ends there\n"}, e.result(t))
	})
	t.Run("stdout and stderr are closed", func(t *testing.T) {
		nested.RequireSuite(t, nested.SuiteMatrix)
		t.Parallel()
		e := execVole(t, 5, nil, "sh", "-c", "echo into the void; echo there too >&2; exit 4")
		inShell(e, `exec "$@" >&- 2>&-`)
		assert.Equal(t, result{code: 4}, e.result(t))
	})
}

// inShell makes a shell of this host run e by a script, in which it is "$@".
func inShell(e *execed, script string) {
	e.Args = append([]string{"/bin/sh", "-c", script, "sh", e.Path}, e.Args[1:]...)
	e.Path = "/bin/sh"
}

// TestExecSignals: signals go to the command, and the third that should end it ends the
// guest.
func TestExecSignals(t *testing.T) {
	t.Run("each", func(t *testing.T) {
		t.Parallel()
		e := execVole(t, 0, nil, "sh", "-c", `exec 2>/dev/null; for s in USR1 USR2 INT; do trap "echo got $s" $s; done
trap "echo got TERM; exit 9" TERM; echo ready; while :; do sleep 0.1; done`)
		r := e.begin(t)
		require.True(t, r.out.until("ready\n"), "%s", &r.errs)
		for _, s := range []struct {
			signal syscall.Signal
			name   string
		}{{syscall.SIGUSR1, "USR1"}, {syscall.SIGUSR2, "USR2"}, {syscall.SIGINT, "INT"}, {syscall.SIGTERM, "TERM"}} {
			require.NoError(t, e.Process.Signal(s.signal))
			require.True(t, r.out.until("got "+s.name+"\n"), "%s: %s", s.name, r.out)
		}
		assert.Equal(t, result{code: 9, stdout: "ready\ngot USR1\ngot USR2\ngot INT\ngot TERM\n"}, r.wait())
	})
	t.Run("USR1 before the guest is up", func(t *testing.T) {
		nested.RequireSuite(t, nested.SuiteMatrix)
		t.Parallel()
		log := filepath.Join(t.TempDir(), "console")
		e := execVole(t, 4, []string{"--console-log", log}, "sleep", "1000")
		r := e.begin(t)
		bootBegins(t, log)
		require.NoError(t, e.Process.Signal(syscall.SIGUSR1))
		assert.Equal(t, result{code: 138}, r.wait())
	})
	t.Run("the third", func(t *testing.T) {
		nested.RequireSuite(t, nested.SuiteMatrix)
		t.Parallel()
		e := execVole(t, 1, nil, "sh", "-c", `trap "" TERM HUP; echo ready; while :; do sleep 0.1; done`)
		r := e.begin(t)
		require.True(t, r.out.until("ready\n"), "%s", &r.errs)
		for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGTERM} {
			require.NoError(t, e.Process.Signal(s))
			time.Sleep(50 * time.Millisecond) // two of the same at once are one
		}
		assert.Equal(t, result{code: 143, stdout: "ready\n", stderr: "vole: exec: SIGTERM: the guest was ended\n"}, r.wait())
	})
	t.Run("before the guest is up", func(t *testing.T) {
		t.Parallel()
		e := execVole(t, 2, nil, "sleep", "1000")
		r := e.begin(t)
		time.Sleep(time.Second) // it takes several
		require.NoError(t, e.Process.Signal(syscall.SIGINT))
		assert.Equal(t, 130, r.wait().code)
	})
	t.Run("QUIT", func(t *testing.T) {
		nested.RequireSuite(t, nested.SuiteMatrix)
		t.Parallel()
		e := execVole(t, 3, nil, "sh", "-c", "echo ready; exec sleep 1000")
		r := e.begin(t)
		require.True(t, r.out.until("ready\n"), "%s", &r.errs)
		require.NoError(t, e.Process.Signal(syscall.SIGQUIT))
		assert.Equal(t, result{code: 131, stdout: "ready\n"}, r.wait())
	})
	t.Run("while the kernel is unpacked for the next run", func(t *testing.T) {
		t.Parallel()
		cache := filepath.Join(t.TempDir(), "cache")
		e := execKernel(t, asset(t, nested.KernelDefault), cache, nil, "sh", "-c", "exit 7")
		r := e.begin(t)
		// vole speaks of it only after a second, by when a fast machine is done.
		require.Eventually(t, func() bool {
			begun, err := filepath.Glob(filepath.Join(cache, "[0-9a-f]*.tmp"))
			return err == nil && len(begun) > 0
		}, bootBound, time.Millisecond)
		require.NoError(t, e.Process.Signal(syscall.SIGTERM))
		res := r.wait()
		assert.Equal(t, 7, res.code, "the command's: %s", res.stderr)
		for _, name := range names(t, cache) {
			assert.NotContains(t, name, ".tmp")
			assert.NotContains(t, name, ".vmlinux")
		}
	})
}

// TestExecFiles: the command sees this machine's files, and what it writes stays where
// --rw says and nowhere else. Its directory, environment and user are those of vole.
func TestExecFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	kept, lost := filepath.Join(dir, "kept"), filepath.Join(dir, "lost")
	for _, d := range []string{kept, lost} {
		require.NoError(t, os.Mkdir(d, 0o777))
	}
	require.NoError(t, os.WriteFile(filepath.Join(kept, "old"), []byte("old"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(lost, "old"), []byte("old"), 0o644))
	// The guest has a /run and a /dev/shm of its own, with these in them.
	run, shm := inMemory(t, "/run"), inMemory(t, "/dev/shm")
	beside := t.TempDir()
	flags := []string{"--rw", kept, "--rw", run, "--rw", shm, "--env", "GIVEN=a b", "--cwd", lost, "--share", beside + ":beside,at=/srv/a/b"}
	e := execVole(t, 4, flags, "sh", "-c", `
pwd; echo "$PWD"; echo "$GIVEN"; echo "$INHERITED"; id -u; umask
for d in "$1" "$2"; do
	echo new >$d/new; mkdir -p $d/deep/er; echo x >$d/deep/er/file; mv $d/old $d/older; ln -s new $d/link; ln $d/new $d/hard
	cat $d/older; ls $d | tr '\n' ' '
done
echo anywhere >/bin/new && cat /bin/new
echo run >$3/file; echo shm >$4/file; echo lost >/run/other; cat $3/file $4/file; ls /dev/shm | wc -l
hostname; date +%s
echo shared >/srv/a/b/file
for m in proc:/proc sysfs:/sys devtmpfs:/dev devpts:/dev/pts tmpfs:/dev/shm tmpfs:/run cgroup2:/sys/fs/cgroup bpf:/sys/fs/bpf tracefs:/sys/kernel/tracing; do
	grep -q "^[^ ]* ${m#*:} ${m%%:*} " /proc/mounts || echo "$m is not mounted"
done
(sh -c 'kill -SEGV $$'; :) 2>/dev/null; ls | grep -c '^core\.sh\.'`, "sh", kept, lost, run, shm)
	inShell(e, `ulimit -c unlimited; exec "$@"`)
	e.Env = append(e.Env, "INHERITED=yes", "GIVEN=not this")
	name, err := os.Hostname()
	require.NoError(t, err)
	before := umask(0o027)
	r := e.begin(t)
	umask(before)
	const list = "deep hard link new older "
	got := r.wait()
	var clock int64
	lines := strings.Split(got.stdout, "\n")
	if n := len(lines); assert.Greater(t, n, 3, got.stderr) {
		_, err := fmt.Sscan(lines[n-3], &clock)
		require.NoError(t, err, got.stdout)
		lines[n-3] = "the time"
		got.stdout = strings.Join(lines, "\n")
	}
	assert.Equal(t, result{stdout: lost + "\n" + lost + "\na b\nyes\n0\n0027\nold" + list + "old" + list +
		"anywhere\nrun\nshm\n1\n" + name + "\nthe time\n1\n"}, got)
	assert.InDelta(t, time.Now().Unix(), clock, 60)
	for _, dir := range []string{run, shm} {
		assert.Equal(t, []string{"file"}, names(t, dir))
	}
	assert.Equal(t, []string{"deep", "hard", "link", "new", "older"}, names(t, kept))
	assert.Equal(t, []string{"old"}, names(t, lost))
	assert.NoFileExists(t, "/bin/new")
	assert.Equal(t, []string{"file"}, names(t, beside))
	assert.NoDirExists(t, "/srv/a")
	b, err := os.ReadFile(filepath.Join(kept, "deep/er/file"))
	require.NoError(t, err)
	assert.Equal(t, "x\n", string(b))
	info, err := os.Stat(filepath.Join(kept, "hard"))
	require.NoError(t, err)
	assert.EqualValues(t, 2, info.Sys().(*syscall.Stat_t).Nlink)
	assert.EqualValues(t, 0o640, info.Mode())
}

// bootBegins waits for the console's log, which is made just before the boot: what vole was
// given until then is in the guest's orders.
func bootBegins(t testing.TB, log string) {
	t.Helper()
	require.Eventually(t, func() bool { _, err := os.Stat(log); return err == nil }, time.Minute, 10*time.Millisecond)
}

// inMemory makes a directory in one that a guest has of its own.
func inMemory(t testing.TB, parent string) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(parent, 0o755))
	dir, err := os.MkdirTemp(parent, "vole-exec-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func umask(mask int) int { return syscall.Umask(mask) }

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// TestExecUsers: an ordinary user, who may open /dev/kvm and nothing else that root may,
// is the same user in the guest; --user names another.
func TestExecUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("other users: needs root")
	}
	const script = `id -u; id -g; id -G; cat secret 2>/dev/null || echo denied; echo mine >mine; stat -c '%a %u %g' mine; (: >/etc/new) 2>/dev/null || echo denied`
	stage := func(t *testing.T) (dir string) {
		dir, err := os.MkdirTemp("", "vole-exec-users-")
		require.NoError(t, err)
		t.Cleanup(func() { os.RemoveAll(dir) })
		require.NoError(t, os.Chmod(dir, 0o777))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "secret"), []byte("secret\n"), 0o600))
		return dir
	}
	info, err := os.Stat("/dev/kvm")
	require.NoError(t, err)
	require.NoError(t, os.Chmod("/dev/kvm", 0o666))
	t.Cleanup(func() { assert.NoError(t, os.Chmod("/dev/kvm", info.Mode().Perm())) })
	ordinary := func(t *testing.T, turn int, flags []string, script string) result {
		e := execVole(t, turn, flags, "sh", "-c", script)
		require.NoError(t, os.Chmod(e.tmp, 0o777))
		e.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1234, Gid: 2345, Groups: []uint32{2345, 46}}}
		e.Dir = "/"
		return e.result(t)
	}
	t.Run("ordinary", func(t *testing.T) {
		t.Parallel()
		dir := stage(t)
		r := ordinary(t, 5, []string{"--rw", dir, "--cwd", dir}, script)
		assert.Equal(t, "1234\n2345\n2345 46\ndenied\n644 1234 2345\ndenied\n", r.stdout, r.stderr)
		checkOwner(t, filepath.Join(dir, "mine"), 1234, 2345)
	})
	// Root in the guest owns what is this user's, and there is nothing that this user may
	// not do here.
	t.Run("ordinary, root there", func(t *testing.T) {
		t.Parallel()
		dir := stage(t)
		mine := filepath.Join(dir, "mine")
		require.NoError(t, os.WriteFile(mine, nil, 0o600))
		require.NoError(t, os.Chown(mine, 1234, 2345))
		r := ordinary(t, 4, []string{"--rw", dir, "--cwd", dir, "--user", "root"}, `
stat -c '%u %g' mine; echo new >new; chown 0:0 new mine && chmod 640 mine new; stat -c '%a %u %g' mine new
chown 7 new 2>/dev/null || echo refused; cat secret 2>/dev/null || echo denied; chown 0:0 secret 2>/dev/null || echo refused`)
		assert.Equal(t, result{stdout: "0 0\n640 0 0\n640 0 0\nrefused\ndenied\nrefused\n"}, r)
		checkOwner(t, mine, 1234, 2345)
		checkOwner(t, filepath.Join(dir, "new"), 1234, 2345)
	})
	t.Run("named", func(t *testing.T) {
		nested.RequireSuite(t, nested.SuiteMatrix)
		t.Parallel()
		dir := stage(t)
		e := execVole(t, 0, []string{"--rw", dir, "--cwd", dir, "--user", "nobody"}, "sh", "-c", script)
		r := e.result(t)
		assert.Equal(t, "65534\n65534\n65534 46\ndenied\n644 65534 65534\ndenied\n", r.stdout, r.stderr)
		checkOwner(t, filepath.Join(dir, "mine"), 65534, 65534)
	})
}

func checkOwner(t testing.TB, path string, uid, gid uint32) {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	st := info.Sys().(*syscall.Stat_t)
	assert.Equal(t, [2]uint32{uid, gid}, [2]uint32{st.Uid, st.Gid})
}

// TestExecNet: a user network is configured when the command begins: names, and a
// server of this host's on its loopback.
func TestExecNet(t *testing.T) {
	t.Parallel()
	ownNetwork(t)
	streamServer(t, "127.0.0.1:7000")
	e := execVole(t, 1, []string{"--net", "user,host-loopback"}, "sh", "-c", `
nslookup gateway.vole.internal 2>&1 | grep -c 10.0.2.2
"$0" send 1000000 tcp:10.0.2.2:7000
"$0" recv 1000000 tcp:10.0.2.2:7000`, asset(t, nested.AssetPeer))
	r := e.result(t)
	assert.Equal(t, 0, r.code, r.stdout+r.stderr)
	assert.Equal(t, 2, strings.Count(r.stdout, "PEER ok"), r.stdout+r.stderr)
}

// TestExecTerminal: a shell in the guest on a real terminal: of its size, with Ctrl-c
// for the command alone, and raw here until the end.
func TestExecTerminal(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "console")
	e := execVole(t, 2, []string{"--console-log", log}, "sh", "-c", `tty; while [ "$(stty size)" != "33 77" ]; do sleep 0.1; done; stty size; trap "stty size" WINCH; trap : INT; echo rea""dy
sh -c 'trap "echo interr""upted; exit 0" INT; echo go""ing; while :; do sleep 0.1; done'
head -c 3 </dev/tty | hexdump -e '"got" 3/1 " %02x"'; echo
echo st""derr >&2
read line; echo "line <$line>"; exit 5`)
	p := newTerminal(t)
	p.resize(22, 66)
	p.start(e.Cmd)
	bootBegins(t, log)
	p.resize(33, 77)
	p.expect("/dev/pts/0\r\n33 77\r\nready\r\ngoing\r\n")
	raw := p.termios()
	assert.Zero(t, raw.Lflag&(syscall.ICANON|syscall.ECHO|syscall.ISIG))
	p.resize(44, 99)
	p.typeIn([]byte("\x03"))
	p.expect("interrupted\r\n")
	p.expect("44 99\r\n")
	p.typeIn([]byte("ab\r"))
	p.expect("got 61 62 0a\r\n")
	p.expect("stderr\r\n")
	p.typeIn([]byte("x\x7fyes\r"))
	p.expect("line <yes>\r\n")
	assert.Equal(t, 5, p.wait(), p.out)
}

// TestExecTerminalBoot: while there is nobody to type to, the terminal is as it was, and
// Ctrl-c ends the guest.
func TestExecTerminalBoot(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "console")
	e := execVole(t, 0, []string{"--console-log", log, "-a", "rdinit=/none root=/dev/none rootwait loglevel=7"}, "true")
	p := newTerminal(t)
	p.start(e.Cmd)
	bootBegins(t, log)
	cooked := p.termios()
	assert.NotZero(t, cooked.Lflag&syscall.ISIG)
	p.typeIn([]byte("\x03"))
	assert.Equal(t, 130, p.wait(), p.out)
}

// TestExecTerminalOdd: a window without a size, a stdin that is none, and the way out.
func TestExecTerminalOdd(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	t.Parallel()
	e := execVole(t, 3, nil, "sh", "-c", `stty size; [ -t 0 ] && echo in; [ -t 1 ] || echo pipe >&2; echo ready >&2; trap "" INT; while :; do sleep 0.1; done`)
	out := newWatched()
	e.Stdout = out
	p := newTerminal(t)
	p.start(e.Cmd)
	p.expect("pipe\r\nready\r\n")
	assert.Equal(t, "24 80\nin\n", out.String())
	p.typeIn([]byte("\x03\x1d\x1d\x1d"))
	assert.Equal(t, 130, p.wait(), p.out)
	p.expect("vole: exec: Ctrl-] three times: the guest was ended\r\n")
}
