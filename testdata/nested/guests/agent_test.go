package guests

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/boot"
	"github.com/vole-vmm/vole/boot/initramfs"
	"github.com/vole-vmm/vole/guest"
	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/guest/wire"
	"github.com/vole-vmm/vole/testdata/nested"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/fs"
	"github.com/vole-vmm/vole/virtio/fs/hostdir"
	"github.com/vole-vmm/vole/virtio/vsock"
	"github.com/vole-vmm/vole/vmm"
)

// agentModules are the drivers that an agent's guest may need.
var agentModules = []string{"virtio_pci", "vmw_vsock_virtio_transport", "virtiofs", "overlay"}

// agentGuest is a machine whose PID 1 is an agent on a shared root.
type agentGuest struct {
	*remote.Guest
	machine *vmm.Machine
	console *watched
}

// startAgent boots a kernel with the directory root of this host as its root.
func startAgent(t testing.TB, kernel, root string, config wire.Config) *agentGuest {
	t.Helper()
	load, err := initramfs.Cache{}.Modules(asset(t, "modules"+strings.TrimPrefix(kernel, "kernel")), initramfs.SelectOptions{}, agentModules...)
	require.NoError(t, err)
	t.Cleanup(func() { load.Close() })
	config.Port, config.Modules, config.Secret = wire.DefaultPort, load.Load, wire.NewSecret()
	archive, err := guest.AgentArchive(asset(t, nested.AssetVole), config)
	require.NoError(t, err)
	t.Cleanup(func() { archive.Close() })

	dir, err := hostdir.New(hostdir.Options{Dir: root, Writable: []string{filepath.Join(root, "work")}, ReadOnly: true})
	require.NoError(t, err)
	share, err := fs.New(dir, fs.Options{Tag: "root"})
	require.NoError(t, err)
	socket, err := vsock.New(vsock.Options{CID: 3})
	require.NoError(t, err)
	l, err := socket.Listen(wire.DefaultPort)
	require.NoError(t, err)
	g := &agentGuest{Guest: remote.New(l, remote.Options{Secret: config.Secret}), console: newWatched()}
	g.machine, err = vmm.New(vmm.Config{
		Kernel: asset(t, kernel), Initrds: []boot.Image{load, archive}, Cmdline: vmm.DefaultCmdline + " quiet", Boot: vmm.BootVMLinux,
		Cache: cacheWith(t, asset(t, kernel)), Memory: 256 << 20, Devices: []virtio.Device{socket, share}, ConsoleOut: g.console, Timeout: bootBound,
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		g.Close()
		require.NoError(t, g.machine.Close())
		if t.Failed() {
			t.Logf("console: %s", g.console)
		}
	})
	require.NoError(t, g.machine.Start())
	return g
}

// sharedRoot is a directory to be a guest's root, with busybox.
func sharedRoot(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys", "tmp", "work"} {
		require.NoError(t, os.Mkdir(filepath.Join(root, dir), 0o755))
	}
	busybox, err := os.ReadFile(asset(t, nested.AssetBusybox))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(root, "bin/busybox"), busybox, 0o755))
	for _, name := range []string{"sh", "cat", "md5sum", "mount", "hostname", "id", "ls", "sleep", "stty", "tty", "umask", "ifconfig", "head", "tail", "date"} {
		require.NoError(t, os.Symlink("busybox", filepath.Join(root, "bin", name)))
	}
	return root
}

// full takes nothing.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// TestAgent: commands in a guest with a stock kernel, on a shared root.
func TestAgent(t *testing.T) {
	netKernels(t, 1, func(t *testing.T, kernel, transport string) {
		root := sharedRoot(t)
		g := startAgent(t, kernel, root, wire.Config{
			Root:     &wire.Root{Tag: "root", Overlay: true, Writable: []wire.Text{"/work"}},
			Hostname: "vole-guest",
		})
		ctx, cancel := context.WithTimeout(context.Background(), bootBound)
		defer cancel()
		hello, err := g.Ready(ctx)
		require.NoError(t, err, g.console)
		t.Logf("init %v, ready %v", time.Duration(hello.Init), time.Duration(hello.Ready))
		assert.Empty(t, hello.Problems)

		c := g.CommandContext(ctx, "sh", "-c", "echo err >&2; mount; ls -l /dev /tmp /; hostname; ifconfig lo; echo kept >/work/a; echo lost >/etc/b; exit 7")
		var out, errs bytes.Buffer
		c.Stdout, c.Stderr = &out, &errs
		var exit *remote.ExitError
		require.ErrorAs(t, c.Run(), &exit)
		t.Log(out.String())
		assert.Equal(t, 7, exit.ExitCode())
		assert.Equal(t, "err\n", errs.String())
		assert.Contains(t, out.String(), "vole-guest\n")
		assert.Contains(t, out.String(), "127.0.0.1")
		assert.NoFileExists(t, filepath.Join(root, "etc/b"))
		kept, err := os.ReadFile(filepath.Join(root, "work/a"))
		require.NoError(t, err)
		assert.Equal(t, "kept\n", string(kept))

		data := make([]byte, 4<<20)
		_, err = io.ReadFull(rand.Reader, data)
		require.NoError(t, err)
		c = g.CommandContext(ctx, "cat")
		c.Stdin = bytes.NewReader(data)
		got, err := c.Output()
		require.NoError(t, err)
		assert.True(t, slices.Equal(data, got), "%d bytes of %d", len(got), len(data))

		// Nobody takes what it writes, nobody reads what it is sent.
		c = g.CommandContext(ctx, "sh", "-c", "exec cat /dev/zero")
		c.Stdout = full{}
		require.ErrorAs(t, c.Run(), &exit)
		assert.Equal(t, syscall.SIGPIPE, exit.Signal())
		c = g.CommandContext(ctx, "head", "-c", "3")
		c.Stdin = io.MultiReader(strings.NewReader("abc"), bytes.NewReader(data))
		got, err = c.Output()
		require.NoError(t, err)
		assert.Equal(t, "abc", string(got))

		c = g.CommandContext(ctx, "sh", "-c", "read line; echo $line; tty; stty size")
		var shown bytes.Buffer
		c.Terminal = &remote.Terminal{Rows: 33, Cols: 77, In: strings.NewReader("typed\n"), Out: &shown}
		require.NoError(t, c.Run())
		assert.Equal(t, "typed\r\ntyped\r\n/dev/pts/0\r\n33 77\r\n", shown.String())

		// Neither a signal to PID 1 nor the want of memory ends the guest.
		c = g.CommandContext(ctx, "sh", "-c", "kill -TERM 1; exec tail /dev/zero")
		require.ErrorAs(t, c.Run(), &exit)
		assert.Equal(t, syscall.SIGKILL, exit.Signal())
		assert.True(t, exit.OOM())

		require.NoError(t, g.SetClock(time.Unix(2_000_000_000, 0)))
		require.NoError(t, g.Ping(ctx))
		got, err = g.CommandContext(ctx, "date", "+%s").Output()
		require.NoError(t, err)
		assert.Regexp(t, `^20000000\d\d\n$`, string(got))

		require.NoError(t, g.Poweroff())
		end, err := g.machine.Wait(ctx)
		require.NoError(t, err)
		assert.Equal(t, vmm.Exit{Reason: vmm.Poweroff}, end)
	})
}
