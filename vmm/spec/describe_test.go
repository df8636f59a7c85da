package spec

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
)

// TestDescribe: a report tells the devices of a kind apart, with the keys that they were described by.
func TestDescribe(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	img := filepath.Join(dir, "d.img")
	require.NoError(t, os.WriteFile(img, make([]byte, 1<<20), 0o600))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := l.Addr().String()
	require.NoError(t, l.Close())
	m := Machine{
		Disks: []Disk{{File: img, ReadOnly: true, Serial: "s", Queues: "2"}, {File: img, COW: cowMemory}, {File: img, COW: cowFile}},
		Nets:  []Net{{User: true, MAC: "52:54:00:12:34:56", MTU: "9000", Restrict: true}, {User: true, HostLoopback: true}}, Publish: []string{port + ":80"},
		Vsock: &Vsock{Path: filepath.Join(dir, "v"), CID: "42"}, ConsoleDevice: "virtio",
		Ports:  []Port{{"agent", filepath.Join(dir, "p")}, {"log", filepath.Join(dir, "l")}},
		Shares: []Share{{Dir: dir, Tag: "t", ReadOnly: true}, {Dir: dir, Tag: "u", Cache: "none"}},
		RNG:    true,
	}
	list, err := m.Devices(ConsoleStreams{}, nil)
	require.NoError(t, err)
	defer closeAll(list)
	var got []string
	for _, d := range list {
		text := d.Type().String() + " "
		if c, ok := d.(virtio.Describing); ok {
			b, err := json.Marshal(c.Describe())
			require.NoError(t, err)
			text += string(b)
		}
		got = append(got, strings.NewReplacer(dir, "DIR", port, "HOST").Replace(text))
	}
	assert.Equal(t, []string{
		`block {"cache":"writeback","file":"DIR/d.img","format":"raw","queues":2,"ro":true,"serial":"s"}`,
		`block {"cache":"writeback","cow":"memory","file":"DIR/d.img","format":"raw","queues":1,"ro":false}`,
		`block {"cache":"writeback","cow":"file","file":"DIR/d.img","format":"raw","queues":1,"ro":false}`,
		`net {"host-loopback":false,"mac":"52:54:00:12:34:56","mtu":9000,"publish":["HOST:80"],"queues":1,"restrict":true,"user":true}`,
		`net {"host-loopback":true,"mac":"9e:45:27:4a:f0:e7","mtu":65520,"queues":1,"restrict":false,"user":true}`,
		`vsock {"cid":42,"path":"DIR/v"}`,
		`console {"consoles":1}`,
		`console {"ports":{"agent":"DIR/p","log":"DIR/l"}}`,
		`fs {"cache":"auto","dir":"DIR","queues":1,"ro":true,"tag":"t"}`,
		`fs {"cache":"none","dir":"DIR","queues":1,"ro":false,"tag":"u"}`,
		`rng `,
	}, got)
}
