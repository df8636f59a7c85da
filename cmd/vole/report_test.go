package main

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/vmm"
	"github.com/vole-vmm/vole/vmm/spec"
)

func TestParseSmaps(t *testing.T) {
	const smaps = `00400000-00a00000 r-xp 00000000 08:01 1234                               /usr/bin/vole: odd name
Size:               6144 kB
Rss:                4000 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
c000000000-c000400000 rw-p 00000000 00:00 0
Rss:                1024 kB
Anonymous:          1000 kB
7f0000000000-7f0020000000 rw-s 00000000 00:01 9                          /memfd:vole-ram (deleted)
Rss:               65536 kB
Anonymous:             0 kB
7f0040000000-7f0060000000 rw-p 00000000 00:00 0                          [anon:vole-ram]
Rss:                1000 kB
Anonymous:          1000 kB
7f0050000000-7f0058000000 rw-p 00000000 00:00 0
Rss:                2000 kB
Anonymous:          2000 kB
VmFlags: rd wr mr mw me ac dd hg
7f0060000000-7f0060001000 rw-s 00000000 00:0e 5                          anon_inode:kvm-vcpu:0
Rss:                   4 kB
Anonymous:             0 kB
`
	r, err := parseSmaps(strings.NewReader(smaps))
	require.NoError(t, err)
	assert.Equal(t, resident{Guest: 68536 << 10, Rest: 5028 << 10, RestAnonymous: 1000 << 10}, r)
	require.NotNil(t, readResident())
}

func TestStatField(t *testing.T) {
	const stat = "77 (a ) b (c) S 12 13 14 0 -1 4194304 100 0 0 0 1 2 0 0 20 0 7 0 987654 1000 200"
	n, ok := statField([]byte(stat), 22)
	assert.True(t, ok)
	assert.EqualValues(t, 987654, n)
	n, ok = statField([]byte(stat), 4)
	assert.True(t, ok)
	assert.EqualValues(t, 12, n)
	for _, bad := range []string{"", "77 (a", "77 (a) S 1 2", "77 (a) S x"} {
		_, ok := statField([]byte(bad), 22)
		assert.False(t, ok, bad)
	}
	_, ok = statField([]byte(stat), 3)
	assert.False(t, ok, "a letter")
	_, ok = statField([]byte(stat), 2)
	assert.False(t, ok)
}

func TestProcessStart(t *testing.T) {
	start := processStart()
	assert.False(t, start.After(atMain))
	age, ok := processAge()
	require.True(t, ok)
	assert.InDelta(t, float64(age), float64(time.Since(start)), float64(25*time.Millisecond))
	_, err := os.Stat("/proc/self/stat")
	require.NoError(t, err)
}

func TestExitCode(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want int
	}{
		"none":          {nil, 0},
		"any":           {errors.New("x"), 1},
		"usage":         {&usageError{errors.New("x")}, 2},
		"configuration": {vmm.ErrConfig, 2},
		"spec":          {&spec.FieldError{Field: "memory", Err: errors.New("x")}, 2},
		"of its own":    {&exitError{code: 130}, 130},
	} {
		assert.Equal(t, tc.want, exitCode(tc.err), name)
	}
	for reason, want := range map[vmm.Reason]int{
		vmm.Poweroff: 0, vmm.Reset: 3, vmm.Panic: 4, vmm.TripleFault: 5, vmm.Timeout: 6, vmm.HostError: 1, vmm.Killed: 1, vmm.DebugExit: 0,
	} {
		assert.Equal(t, want, guestCode(vmm.Exit{Reason: reason}), reason)
	}
	assert.Equal(t, 7, guestCode(vmm.Exit{Reason: vmm.DebugExit, Code: 1}))
}

func TestReportText(t *testing.T) {
	r := runReport{
		Report: vmm.Report{
			Boot: vmm.BootInfo{Protocol: "pvh", Kernel: "/boot/vmlinuz", Cached: true}, VCPUs: 2, Memory: 512 << 20,
			Timeline: []vmm.Mark{{Name: vmm.MarkCreated, At: 5 * time.Millisecond}, {Name: vmm.MarkExit, At: 1500 * time.Millisecond}},
			Exits:    map[string]uint64{"port-out": 7, "mmio-write": 20, "port-in": 7, "halt": 0},
			Exit:     vmm.Exit{Reason: vmm.Panic, Err: errors.New("sysrq")},
			Devices: []vmm.DeviceReport{
				{
					Type:     "net",
					Config:   map[string]any{"mac": "02:00:00:00:00:01", "mtu": 1500, "tap": "tap0", "vhost": true, "off": false, "publish": []string{"127.0.0.1:1:2", "127.0.0.1:3:4"}},
					Counters: []virtio.Counter{{Name: "frames in", Value: 5}, {Name: "none"}, {Name: "bytes in", Value: 300}},
				},
				{Type: "console", Config: map[string]any{"consoles": 1, "ports": map[string]string{"b": "", "a": "/tmp/a b\n"}}},
				{Type: "vsock", Counters: []virtio.Counter{{Name: "sent", Value: 1}}},
				{Type: "rng"},
			},
		},
		Started: atMain.Add(-2 * time.Millisecond), Cmdline: "console=ttyS0", Resident: &resident{100 << 20, 6 << 20, 3 << 19},
	}
	r.finish(&exitError{codePanic, errors.New("the guest's kernel panicked")}, 1)
	text := string(r.text())
	_, text, _ = strings.Cut(text, "\n") // the version
	assert.Equal(t, `ended     panic: sysrq (exit code 4)
          the guest's kernel panicked
restarts  1; the rest is about the last machine
kernel    /boot/vmlinuz (pvh, unpacked in the cache)
cmdline   console=ttyS0
machine   2 vCPU, 512M memory
timeline  from the start of the process
  process        0.000 ms  +0.000
  main           2.000 ms  +2.000
  created        5.000 ms  +3.000
  exit        1500.000 ms  +1495.000
exits     to user space
  mmio-write         20
  port-in            7
  port-out           7
devices   virtio, in the order of their slots
  net       mac=02:00:00:00:00:01 mtu=1500 publish=127.0.0.1:1:2 publish=127.0.0.1:3:4 tap=tap0 vhost
            frames in 5, bytes in 300
  console   consoles=1 ports=a:"/tmp/a b\n" ports=b:""
  vsock     sent 1
  rng
resident  at the end
  guest          100.0 MiB of the guest's 512M
  vole             6.0 MiB, 1.5 of it anonymous
`, text)
}
