package spec

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/vmm"
)

// TestDocumented: the machine in docs/machine.md is one.
func TestDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/machine.md")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(page), "```json\n")
	require.True(t, ok)
	text, _, ok := strings.Cut(rest, "```")
	require.True(t, ok)
	m, err := Decode(strings.NewReader(text))
	require.NoError(t, err)
	_, err = m.Config()
	require.NoError(t, err)
	assert.Len(t, m.Disks, 2)
}

func TestDecode(t *testing.T) {
	line := "console=ttyS1"
	for name, tc := range map[string]struct {
		in   string
		want Machine
	}{
		"empty object":    {"{}", Machine{}},
		"memory as text":  {`{"memory": "1G"}`, Machine{Memory: "1G"}},
		"memory as bytes": {`{"memory": 1073741824}`, Machine{Memory: "1073741824"}},
		"all": {
			`{"kernel": "k", "initrd": "i", "cmdline": "console=ttyS1", "append": "quiet", "boot": "bzimage",
			  "memory": "512M", "cpus": 2, "memory-backing": "memfd", "huge-pages": "never", "pit": true,
			  "timeout": "30s", "console": "c", "on-reset": "restart", "transport": "mmio", "rng": true,
			  "disk": [{"file": "d", "ro": true, "serial": "s", "format": "raw", "cache": "none", "cow": "memory", "queues": 2,
			    "iops": 100, "iops-burst": "1K", "bps": "1M", "bps-burst": "2M"}],
			  "net": [{"tap": "t0", "create": true, "vhost": true, "queues": 2, "mac": "52:54:00:12:34:56", "mtu": 9000,
			    "rx-bps": "1M", "rx-bps-burst": "2M", "rx-pps": 3, "rx-pps-burst": 4, "tx-bps": 5, "tx-bps-burst": 6, "tx-pps": 7, "tx-pps-burst": 8},
			    {"user": true, "restrict": true, "host-loopback": true}], "publish": ["8080:80"],
			  "vsock": {"path": "v", "cid": 7}, "console-device": "virtio", "port": [{"name": "n", "path": "p"}]}` + "\n",
			Machine{Kernel: "k", Initrd: "i", Cmdline: &line, Append: "quiet", Boot: "bzimage", Memory: "512M", CPUs: "2",
				MemoryBacking: "memfd", HugePages: "never", PIT: true, Timeout: "30s", Console: "c", OnReset: "restart",
				Transport: "mmio", RNG: true, Disks: []Disk{{File: "d", ReadOnly: true, Serial: "s", Format: "raw", Cache: "none",
					COW: "memory", Queues: "2", IOPS: "100", IOPSBurst: "1K", BPS: "1M", BPSBurst: "2M"}},
				Nets: []Net{{Tap: "t0", Create: true, VHost: true, Queues: "2", MAC: "52:54:00:12:34:56", MTU: "9000",
					RXBPS: "1M", RXBPSBurst: "2M", RXPPS: "3", RXPPSBurst: "4", TXBPS: "5", TXBPSBurst: "6", TXPPS: "7", TXPPSBurst: "8"},
					{User: true, Restrict: true, HostLoopback: true}}, Publish: []string{"8080:80"},
				Vsock: &Vsock{Path: "v", CID: "7"}, ConsoleDevice: "virtio", Ports: []Port{{"n", "p"}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Decode(strings.NewReader(tc.in))
			require.NoError(t, err)
			assert.Equal(t, tc.want, got)
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"nothing":            {"", "empty"},
		"no object":          {"[]", "array"},
		"cut short":          {`{"kernel": "k"`, "unexpected EOF"},
		"unknown key":        {`{"dish": "d"}`, `unknown field "dish"`},
		"second value":       {`{} {}`, "behind the machine"},
		"rubbish behind":     {`{} x`, "behind the machine"},
		"wrong kind":         {`{"kernel": 1}`, "kernel: a JSON number where a string is wanted"},
		"wrong kind, bool":   {`{"pit": "yes"}`, "pit: a JSON string where true or false is wanted"},
		"wrong kind, list":   {`{"disk": "root.img"}`, "disk: a JSON string where a list is wanted"},
		"wrong kind, object": {`{"vsock": "v"}`, "vsock: a JSON string where an object is wanted"},
		"too long":           {`{"kernel": "` + strings.Repeat("x", maxDocument) + `"}`, "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Decode(strings.NewReader(tc.in))
			require.ErrorIs(t, err, ErrSpec)
			assert.ErrorContains(t, err, tc.want)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestConfig(t *testing.T) {
	text := func(s string) *string { return &s }
	for name, tc := range map[string]struct {
		in   Machine
		want vmm.Config
	}{
		"nothing": {Machine{}, vmm.Config{}},
		"all": {
			Machine{Kernel: "k", Initrd: "i", Memory: "1G", CPUs: "2", Timeout: "1m30s", Boot: "vmlinux", PIT: true,
				MemoryBacking: "memfd", HugePages: "reserved"},
			vmm.Config{Kernel: "k", Initrd: "i", Memory: 1 << 30, CPUs: 2, Timeout: 90 * time.Second, Boot: vmm.BootVMLinux, PIT: true,
				Backing: 1, Huge: 2},
		},
		"append":             {Machine{Append: "quiet"}, vmm.Config{Cmdline: vmm.DefaultCmdline + " quiet"}},
		"cmdline":            {Machine{Cmdline: text("a=1")}, vmm.Config{Cmdline: "a=1"}},
		"cmdline and append": {Machine{Cmdline: text("a=1"), Append: "a=2"}, vmm.Config{Cmdline: "a=1 a=2"}},
		"no words at all":    {Machine{Cmdline: text("")}, vmm.Config{Cmdline: " "}},
		"append alone":       {Machine{Cmdline: text(""), Append: "b"}, vmm.Config{Cmdline: "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tc.in.Config()
			require.NoError(t, err)
			assert.Equal(t, tc.want, got)
		})
	}
}

func TestConfigRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		in    Machine
		field string
		want  string
	}{
		"memory 0":          {Machine{Memory: "0"}, "memory", `"0" is too little: want from 2M to 512G, as 512M`},
		"memory 1 MiB":      {Machine{Memory: "1M"}, "memory", `"1M" is too little`},
		"memory no unit":    {Machine{Memory: "512"}, "memory", "did you mean 512M?"},
		"memory 16 EiB":     {Machine{Memory: "16E"}, "memory", `"16E" is too much: want from 2M to 512G`},
		"memory 2^64 bytes": {Machine{Memory: "18446744073709551616"}, "memory", "is too much"},
		"memory 2^64-1":     {Machine{Memory: "18446744073709551615"}, "memory", "is too much"},
		"memory no number":  {Machine{Memory: "lots"}, "memory", `"lots" is not a size: want a number of bytes`},
		"memory negative":   {Machine{Memory: "-1G"}, "memory", "is not a size"},
		"memory fraction":   {Machine{Memory: "1.5G"}, "memory", "is not a size"},
		"memory odd":        {Machine{Memory: "536870913"}, "memory", "not a multiple of 4096"},
		"memory in JSON":    {Machine{Memory: "{}"}, "memory", "is not a size"},
		"cpus 0":            {Machine{CPUs: "0"}, "cpus", "0 is not between 1 and 255"},
		"cpus 10000":        {Machine{CPUs: "10000"}, "cpus", "10000 is not between 1 and 255"},
		"cpus 2^64+1":       {Machine{CPUs: "18446744073709551617"}, "cpus", "not between"},
		"cpus word":         {Machine{CPUs: "two"}, "cpus", `"two" is not a whole number`},
		"cpus negative":     {Machine{CPUs: "-1"}, "cpus", "not a whole number"},
		"timeout no unit":   {Machine{Timeout: "30"}, "timeout", "want a number with its unit"},
		"timeout 0":         {Machine{Timeout: "0s"}, "timeout", "want more than 0"},
		"timeout negative":  {Machine{Timeout: "-1s"}, "timeout", "want more than 0"},
		"boot":              {Machine{Boot: "pxe"}, "boot", `"pxe" is not one of auto, vmlinux, bzimage`},
		"backing":           {Machine{MemoryBacking: "disk"}, "memory-backing", `"disk" is not one of anonymous, memfd`},
		"huge pages":        {Machine{HugePages: "1G"}, "huge-pages", `"1G" is not one of advise, never, reserved`},
		"on reset":          {Machine{OnReset: "wait"}, "on-reset", `"wait" is not one of exit, restart`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tc.in.Config()
			require.ErrorIs(t, err, ErrSpec)
			var field *FieldError
			require.ErrorAs(t, err, &field)
			assert.Equal(t, tc.field, field.Field)
			assert.ErrorContains(t, err, tc.want)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]uint64{
		"0": 0, "1": 1, "4096": 4096, "1K": 1 << 10, "512M": 512 << 20, "512m": 512 << 20, "512MiB": 512 << 20,
		"3G": 3 << 30, "2t": 2 << 40, "15E": 15 << 60, "007K": 7 << 10,
	} {
		got, err := ParseSize(in)
		require.NoError(t, err, in)
		assert.Equal(t, want, got, in)
	}
	for _, in := range []string{"", "K", "1KB", "1MM", "1 M", " 1M", "1B", "5iB", "0x10", "1e9", "+1", "1KM", "٣"} {
		_, err := ParseSize(in)
		assert.ErrorIs(t, err, ErrSize, in)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(`{"kernel": "k", "memory": "1G", "cpus": 2, "timeout": "30s", "boot": "auto"}`)
	f.Add(`{"memory": 1e999, "cpus": null}`)
	f.Add(`{"cmdline": "", "append": "x"}`)
	f.Fuzz(func(t *testing.T, in string) {
		m, err := Decode(strings.NewReader(in))
		if err != nil {
			require.ErrorIs(t, err, ErrSpec)
			return
		}
		c, err := m.Config()
		if err != nil {
			require.ErrorIs(t, err, ErrSpec)
			return
		}
		require.True(t, c.Memory == 0 || c.Memory >= vmm.MinMemory && c.Memory <= vmm.MaxMemory)
		require.True(t, c.CPUs >= 0 && c.CPUs <= vmm.MaxCPUs)
		require.GreaterOrEqual(t, c.Timeout, time.Duration(0))
	})
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"0", "512M", "16E", "1KiB", "18446744073709551615"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		n, err := ParseSize(in)
		if err != nil {
			require.ErrorIs(t, err, ErrSize)
			return
		}
		again, err := ParseSize(FormatSize(n))
		require.NoError(t, err)
		require.Equal(t, n, again)
	})
}
