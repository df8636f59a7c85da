package agent

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// netlinkMessage is the body of a message: a fixed part and attributes (netlink(7),
// rtnetlink(7)).
type netlinkMessage []byte

func (m netlinkMessage) u32(v uint32) netlinkMessage {
	return binary.NativeEndian.AppendUint32(m, v)
}

// attr adds an attribute, and what aligns the next one.
func (m netlinkMessage) attr(kind uint16, data []byte) netlinkMessage {
	m = binary.NativeEndian.AppendUint16(m, uint16(unix.SizeofRtAttr+len(data)))
	m = binary.NativeEndian.AppendUint16(m, kind)
	m = append(m, data...)
	for len(m)%unix.RTA_ALIGNTO != 0 {
		m = append(m, 0)
	}
	return m
}

// do has the kernel make something, and waits for its answer.
func (r *route) do(kind uint16, body netlinkMessage) error {
	r.seq++
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	b = binary.NativeEndian.AppendUint32(b, uint32(r.seq))
	b = binary.NativeEndian.AppendUint32(b, 0)
	if err := unix.Sendto(r.fd, append(b, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(r.fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if errno, ok := netlinkAnswer(buf[:n], uint32(r.seq)); ok {
			if errno != 0 {
				return errno
			}
			return nil
		}
		if n < unix.SizeofNlMsghdr {
			return errors.New("the kernel's answer is cut off")
		}
	}
}

// netlinkAnswer finds the answer to the message seq.
func netlinkAnswer(b []byte, seq uint32) (errno unix.Errno, ok bool) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return 0, false
		}
		if kind := binary.NativeEndian.Uint16(b[4:]); kind == unix.NLMSG_ERROR &&
			binary.NativeEndian.Uint32(b[8:]) == seq && size >= unix.SizeofNlMsghdr+4 {
			return unix.Errno(-int32(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr:]))), true
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return 0, false
}
