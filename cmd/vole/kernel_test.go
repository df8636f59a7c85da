package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/boot/kernel/pull"
)

// bareImage is the beginning of a bzImage of that release.
func bareImage(release string) []byte {
	b := make([]byte, 0x600)
	b[0x1f1] = 2
	binary.LittleEndian.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x020f)
	binary.LittleEndian.PutUint16(b[0x20e:], 0x200)
	copy(b[0x400:], release+" (someone@example.org) #1 SMP\x00")
	return b
}

// kernelDir is a directory with a kernel and, if it is to have them, modules.
func kernelDir(t *testing.T, release string, modules bool) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "vmlinuz"), bareImage(release), 0o644))
	if modules {
		to := filepath.Join(dir, "lib/modules", release)
		require.NoError(t, os.MkdirAll(to, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(to, "modules.builtin"), []byte("kernel/core.ko\n"), 0o644))
	}
	return dir
}

func withCache(cmd *exec.Cmd, dir string) *exec.Cmd {
	cmd.Env = append(cmd.Env, "VOLE_CACHE="+dir)
	return cmd
}

func TestKernelPull(t *testing.T) {
	cache := t.TempDir()
	run := func(args ...string) result {
		t.Helper()
		return finish(t, withCache(command(t, append([]string{"kernel"}, args...)...), cache))
	}
	require.NoError(t, os.Chmod(cache, 0o700))
	with, without := kernelDir(t, "99.1.2-a", true), kernelDir(t, "99.12", false)
	image := func(name string) string { return filepath.Join(cache, "pulled", name, "vmlinuz") }

	r := run("pull", with, without)
	require.Equal(t, codeOK, r.code, r.stderr)
	assert.Equal(t, image("99.1.2-a")+"\n"+image("99.12")+"\n", r.stdout)
	assert.Contains(t, r.stderr, "vole: kernel: pull: 99.1.2-a is here, with its modules (")
	assert.Contains(t, r.stderr, "vole: kernel: pull: 99.12 is here, without modules (")
	assert.Contains(t, r.stderr, "vole: kernel: pull: warning: ", "there is no vmlinux in it")
	r = run("pull", "-q", "--", without)
	assert.Equal(t, 1, strings.Count(r.stderr, "\n"), "the warning alone: %s", r.stderr)

	r = run("ls")
	require.Equal(t, codeOK, r.code, r.stderr)
	assert.Regexp(t, `(?m)^[ *] 99\.12 +no modules +\S+/99\.12/vmlinuz +pulled from `+without+`$`, r.stdout)
	assert.Regexp(t, `(?m)^[ *] 99\.1\.2-a +modules +\S+/vmlinuz +pulled from `+with+`$`, r.stdout)
	var list []listedKernel
	require.NoError(t, json.Unmarshal([]byte(run("ls", "--json").stdout), &list))
	require.GreaterOrEqual(t, len(list), 2)
	assert.Equal(t, "99.12", list[0].Version)
	assert.Equal(t, without, list[0].Pulled.Source)
	assert.Empty(t, list[0].Modules)
	assert.Equal(t, filepath.Join(cache, "pulled/99.1.2-a/lib/modules/99.1.2-a"), list[1].Modules)

	for name, want := range map[string]string{"99.12": "99.12", "99.1": "99.1.2-a", "99": "99.12", "99.1.2-a": "99.1.2-a", with: "99.1.2-a"} {
		assert.Equal(t, image(want)+"\n", run("path", name).stdout, name)
	}
	assert.Equal(t, codeUsage, run("path", "9").code)

	r = run("rm", "99.12", "none")
	assert.Equal(t, codeUsage, r.code)
	assert.FileExists(t, image("99.12"), "nothing goes unless all names are right")
	assert.Equal(t, codeUsage, run("rm", "99").code, "a beginning is not enough to remove")
	r = run("rm", without, "99.12")
	assert.Equal(t, result{codeOK, "", "vole: kernel: rm: 99.12 is gone\n"}, r)
	assert.NoFileExists(t, image("99.12"))
	assert.Equal(t, "99.1.2-a\n:4\n", finish(t, withCache(command(t, "__complete", "kernel", "rm", ""), cache)).stdout)
	modules := filepath.Join(cache, "modules")
	require.NoError(t, os.Mkdir(modules, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(modules, "x.modules"), nil, 0o600))
	r = run("rm", "--all")
	assert.Equal(t, codeOK, r.code, r.stderr)
	assert.NoFileExists(t, filepath.Join(modules, "x.modules"))
	left, err := os.ReadDir(filepath.Join(cache, "pulled"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

// A removal that waits for another process, which has the cache's index, ends by a signal.
func TestKernelRmEnded(t *testing.T) {
	for name, args := range map[string][]string{"pruning": {"--all"}, "forgetting": {"99.1", "99.2"}} {
		t.Run(name, func(t *testing.T) {
			cache := t.TempDir()
			require.NoError(t, os.Chmod(cache, 0o700))
			r := finish(t, withCache(command(t, "kernel", "pull", "-q", kernelDir(t, "99.1", false), kernelDir(t, "99.2", false)), cache))
			require.Equal(t, codeOK, r.code, r.stderr)
			// What has lost its image is not looked for in the cache.
			require.NoError(t, os.Remove(filepath.Join(cache, "pulled/99.1/vmlinuz")))
			if name == "pruning" {
				require.NoError(t, os.Remove(filepath.Join(cache, "pulled/99.2/vmlinuz")))
			}
			held, err := os.Create(filepath.Join(cache, "index.tmp"))
			require.NoError(t, err)
			defer held.Close()
			require.NoError(t, syscall.Flock(int(held.Fd()), syscall.LOCK_EX))

			cmd := withCache(command(t, append([]string{"kernel", "rm"}, args...)...), cache)
			stderr, err := cmd.StderrPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			assert.Contains(t, readLine(t, stderr), "is gone")
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
			rest, err := io.ReadAll(stderr)
			require.NoError(t, err)
			_ = cmd.Wait()
			assert.Equal(t, 128+int(syscall.SIGTERM), cmd.ProcessState.ExitCode(), string(rest))
			assert.Contains(t, string(rest), "ended by SIGTERM")
		})
	}
}

func TestKernelBadUsage(t *testing.T) {
	text := file(t, "text.deb", []byte("some text, and not a package"))
	fifo := filepath.Join(t.TempDir(), "x.deb")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"an odd name":         {[]string{"pull", "nix"}, `"nix": not the name of a kernel to pull: want debian`},
		"an empty name":       {[]string{"pull", ""}, `""`},
		"no such file":        {[]string{"pull", "/nowhere/x.deb"}, "/nowhere/x.deb: no such file"},
		"no such directory":   {[]string{"pull", "/nowhere"}, "/nowhere: no such file"},
		"nothing in it":       {[]string{"pull", t.TempDir()}, "no kernel in it"},
		"no package":          {[]string{"pull", text}, "not a Debian package"},
		"http":                {[]string{"pull", "http://host/x.deb"}, "sha256"},
		"one bad name of two": {[]string{"pull", kernelDir(t, "99.1", false), "nix"}, `"nix"`},
		"rm nothing":          {[]string{"rm"}, "which kernel?"},
		"rm all and one":      {[]string{"rm", "--all", "x"}, "want one of them"},
		"rm what isn't there": {[]string{"rm", "99.9"}, `no pulled kernel "99.9"`},
		"a FIFO":              {[]string{"pull", fifo}, "x.deb: not a regular file"},
		"path of nothing":     {[]string{"path", "99.9"}, `no kernel "99.9" on this machine`},
		"an unknown flag":     {[]string{"pull", "--frob"}, "--frob"},
	} {
		t.Run(name, func(t *testing.T) {
			cache := filepath.Join(t.TempDir(), "a", "cache")
			r := finish(t, withCache(command(t, append([]string{"kernel"}, tc.args...)...), cache))
			assert.Equal(t, codeUsage, r.code, r.stderr)
			assert.Empty(t, r.stdout)
			lines := strings.Split(strings.TrimSuffix(r.stderr, "\n"), "\n")
			last := lines[len(lines)-1]
			assert.True(t, strings.HasPrefix(last, "vole: kernel: "+tc.args[0]+": "), last)
			assert.Contains(t, last, tc.want)
			assert.Len(t, lines, 1)
			assert.NoDirExists(t, cache, "it has left something")
		})
	}
}

// A pull that is interrupted says so, and leaves nothing half.
func TestKernelPullInterrupted(t *testing.T) {
	for sig, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGHUP: 129} {
		t.Run(sig.String(), func(t *testing.T) {
			asked := make(chan struct{}, 8)
			release := make(chan struct{})
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "1000000")
				_, _ = w.Write(make([]byte, 1000))
				w.(http.Flusher).Flush()
				asked <- struct{}{}
				<-release
			}))
			defer server.Close()
			defer close(release)
			cmd := command(t, "kernel", "pull", server.URL+"/x.deb#sha256="+strings.Repeat("0", 64))
			cache := t.TempDir()
			require.NoError(t, os.Chmod(cache, 0o700))
			withCache(cmd, cache)
			var out, errs bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errs
			require.NoError(t, cmd.Start())
			<-asked
			require.NoError(t, cmd.Process.Signal(sig))
			_ = cmd.Wait()
			assert.Equal(t, code, cmd.ProcessState.ExitCode(), errs.String())
			assert.Empty(t, out.String())
			assert.Contains(t, errs.String(), "vole: kernel: pull: ended by "+signalNames[sig]+"\n")
			left, err := os.ReadDir(filepath.Join(cache, "pulled"))
			if !errors.Is(err, os.ErrNotExist) { // as where nothing has come yet
				require.NoError(t, err)
			}
			for _, e := range left {
				assert.Equal(t, ".work", e.Name(), "what can be gone on with")
			}
		})
	}
}

// apt-get does not outlive a vole that is killed.
func TestKernelPullKilled(t *testing.T) {
	tools, cache := t.TempDir(), filepath.Join(t.TempDir(), "cache")
	script := "#!/bin/sh\necho $$ >" + tools + "/new && mv " + tools + "/new " + tools + "/pid\nexec sleep 1000\n"
	for _, name := range []string{"apt-get", "apt-cache"} {
		require.NoError(t, os.WriteFile(filepath.Join(tools, name), []byte(script), 0o755))
	}
	cmd := withCache(command(t, "kernel", "pull", "debian"), cache)
	cmd.Env = append(cmd.Env, "PATH="+tools+":"+os.Getenv("PATH"))
	require.NoError(t, cmd.Start())
	var pid int
	assert.Eventually(t, func() bool {
		b, err := os.ReadFile(filepath.Join(tools, "pid"))
		if err == nil {
			_, err = fmt.Sscan(string(b), &pid)
		}
		return err == nil
	}, 20*time.Second, 10*time.Millisecond)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	require.NotZero(t, pid)
	if !assert.Eventually(t, func() bool { return ended(pid) }, 5*time.Second, 10*time.Millisecond) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// ended says whether a process has, waited for or not.
func ended(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

// A host that is not there is the host's error, in one line.
func TestKernelPullUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	r := vole(t, "kernel", "pull", "-q", "http://"+addr+"/x.deb#sha256="+strings.Repeat("0", 64))
	assert.Equal(t, codeHost, r.code, r.stderr)
	assert.Equal(t, 1, strings.Count(r.stderr, "\n"), r.stderr)
	assert.Contains(t, r.stderr, "connection refused")
}

func TestPullView(t *testing.T) {
	const mb = 1e6
	steps := []struct {
		after time.Duration
		p     pull.Progress
	}{
		{0, pull.Progress{Step: pull.StepLooking, What: "debian:x"}},
		{time.Second, pull.Progress{Step: pull.StepDownloading, What: "linux\x1b-image", Total: 20 * mb}},
		{10 * time.Millisecond, pull.Progress{Step: pull.StepDownloading, What: "linux\x1b-image", Done: mb, Total: 20 * mb}},
		{11 * time.Second, pull.Progress{Step: pull.StepDownloading, What: "linux\x1b-image", Done: 10 * mb, Total: 20 * mb}},
		{11 * time.Second, pull.Progress{Step: pull.StepDownloading, What: "f", Done: 500}},
		{time.Second, pull.Progress{Step: pull.StepIndexing, What: "modules", Done: 5, Total: 10}},
		{time.Second, pull.Progress{Step: pull.StepWaiting}},
		{11 * time.Second, pull.Progress{Step: pull.StepWaiting}},
	}
	show := func(columns int) string {
		var out strings.Builder
		now := time.Unix(1, 0)
		v := &pullView{w: &out, now: func() time.Time { return now }}
		if columns > 0 {
			v.columns = func() int { return columns }
		}
		for _, s := range steps {
			now = now.Add(s.after)
			v.show(s.p)
		}
		v.clear()
		v.clear()
		return out.String()
	}
	assert.Equal(t, `vole: kernel: pull: looking for debian:x
vole: kernel: pull: downloading linux -image (20.0 MB)
vole: kernel: pull: downloading linux -image: 10.0 MB of 20.0 MB
vole: kernel: pull: downloading f
vole: kernel: pull: indexing modules
vole: kernel: pull: waiting for another vole
vole: kernel: pull: waiting for another vole: still
`, show(0))
	drawn := strings.Split(show(100), "\r")
	for i := range drawn {
		drawn[i] = strings.TrimRight(drawn[i], " ")
	}
	assert.Contains(t, drawn, "looking for debian:x")
	assert.Contains(t, drawn, "[##########..........]  50% downloading linux -image, 10.0 MB of 20.0 MB")
	assert.Contains(t, drawn, "[##########..........]  50% indexing modules, 5 of 10")
	assert.Equal(t, "", drawn[len(drawn)-2], "taken away")
	assert.Equal(t, "", drawn[len(drawn)-1])
	assert.NotContains(t, show(100), "\n")
	for _, columns := range []int{1, 2, 20} {
		for _, line := range strings.Split(show(columns), "\r") {
			assert.Less(t, len(line), columns, "%q", line)
		}
	}
	quiet := &strings.Builder{}
	(&pullView{w: quiet, quiet: true, now: time.Now}).show(steps[0].p)
	assert.Empty(t, quiet.String())
}

func TestFormatBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 26_700_000: "26.7 MB", 4_200_000_000: "4.2 GB"} {
		assert.Equal(t, want, formatBytes(n), fmt.Sprint(n))
	}
}

// TestPullViewOpens: once what was held back is written, a line that comes sooner after
// the first one than that takes is written at once.
func TestPullViewOpens(t *testing.T) {
	var out strings.Builder
	now := time.Unix(1, 0)
	v := &pullView{w: &out, now: func() time.Time { return now }}
	v.show(pull.Progress{Step: pull.StepLooking, What: "a"})
	assert.Empty(t, out.String())
	v.release()
	assert.Equal(t, "vole: kernel: pull: looking for a\n", out.String())
	now = now.Add(holdFor / 2)
	v.show(pull.Progress{Step: pull.StepUpdating})
	assert.Equal(t, 2, strings.Count(out.String(), "\n"), out.String())
}
