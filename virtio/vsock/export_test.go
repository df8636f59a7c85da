package vsock

import (
	"errors"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// UnixConns is how many connections with a Unix socket there are in all devices, and
// SetMostUnixConns bounds them for those of one device.
func UnixConns() int64 { return unixConns.Load() }

func (d *Device) SetMostUnixConns(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unix.most = n
}

// NewTimed is New with other bounds for waits.
func NewTimed(o Options, connect, greeting, linger time.Duration) (*Device, error) {
	return newDevice(o, times{connect: connect, greeting: greeting, linger: linger})
}

// Waiting is how many connections and resets are in line.
func (d *Device) Waiting() int { return int(d.waiting.Load()) }

// MoreResets is how many resets may wait besides one for each connection.
const MoreResets = moreResets

// CloseWhileAccepting is Close, with fd a client that the poller has made a
// connection of and takes up only once Close has ended all connections.
func (d *Device) CloseWhileAccepting(fd int) error {
	server := d.unix
	f, err := d.newFlow(greeting, key{}, newSock(server))
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	d.dials.Add(1) // what Close waits for last
	closed := make(chan error, 1)
	go func() { closed <- d.Close() }()
	for !f.is(ended) {
		runtime.Gosched()
	}
	server.begin(f, fd)
	d.dials.Done()
	return <-closed
}
