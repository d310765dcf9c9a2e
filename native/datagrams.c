/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright: The msgd authors */
/*
 * dgram: many datagrams in one system call (recvmmsg), with the kernel's word on the sender of each.
 *
 * A plain datagram is a whole message without descriptors, from a process whose credentials have been checked before,
 * and that process is its source.  Those in front of the first that is anything else are delivered at once.  That one
 * and all behind it are kept, as recvmsg() would have returned them, and Receiver checks each.  The format is in
 * msgd/wire/dgram.py, the checks in msgd/backends/dgram/receiving.py.
 */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#define DATAGRAMS 32
#define DATAGRAM_MAX 1024
#define LONG_DATAGRAM_MAX 65536 /* between processes of msgd */
#define COOKIE_SIZE 8
#define RIGHTS_MAX 127
#define CONTROL_SIZE (CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(RIGHTS_MAX * sizeof(int)))

static const char whole_cookie[COOKIE_SIZE];

union control {
	struct cmsghdr head;
	char room[CONTROL_SIZE];
};

static char data_buffers[DATAGRAMS][LONG_DATAGRAM_MAX]; /* only what is used becomes memory */
static union control control_buffers[DATAGRAMS];
static struct iovec pieces[DATAGRAMS];
static struct mmsghdr headers[DATAGRAMS]; /* the GIL is held as long as anything is in these */

static void prepare_headers(void)
{
	for (int i = 0; i < DATAGRAMS; i++) {
		pieces[i] = (struct iovec){.iov_base = data_buffers[i], .iov_len = LONG_DATAGRAM_MAX};
		headers[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i],
						     .msg_iovlen = 1,
						     .msg_control = &control_buffers[i],
						     .msg_controllen = sizeof(control_buffers[i])};
	}
}

/* The only control message of the datagram, if it holds credentials; otherwise NULL. */
static const unsigned char *only_credentials(struct msghdr *header)
{
	struct cmsghdr *control = CMSG_FIRSTHDR(header);

	if (!control || control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_CREDENTIALS ||
	    control->cmsg_len != CMSG_LEN(sizeof(struct ucred)) || CMSG_NXTHDR(header, control))
		return NULL;
	return CMSG_DATA(control);
}

/* Whether these credentials have been checked, and are those of this pid; -1 with an exception. */
static int is_known(PyObject *known_senders, const unsigned char *credentials, uint64_t pid)
{
	PyObject *key = PyBytes_FromStringAndSize((const char *)credentials, sizeof(struct ucred));
	PyObject *found = key ? PyDict_GetItemWithError(known_senders, key) : NULL;
	struct ucred sender;

	Py_XDECREF(key);
	if (!found)
		return PyErr_Occurred() ? -1 : 0;
	memcpy(&sender, credentials, sizeof(sender));
	return sender.pid > 0 && (uint64_t)sender.pid == pid;
}

/* The message of a plain datagram; NULL, perhaps with an exception, if it is not plain. */
static PyObject *plain_message(Addresses *addresses, PyObject *known_senders, struct mmsghdr *received)
{
	const char *data = received->msg_hdr.msg_iov->iov_base;
	const unsigned char *credentials;
	struct route route;
	uint32_t type;

	if (received->msg_len < COOKIE_SIZE + HEADER_SIZE || received->msg_len > DATAGRAM_MAX ||
	    (received->msg_hdr.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || memcmp(data, whole_cookie, COOKIE_SIZE))
		return NULL;
	credentials = only_credentials(&received->msg_hdr);
	if (!credentials)
		return NULL;
	memcpy(&route, data + COOKIE_SIZE, sizeof(route));
	memcpy(&type, data + COOKIE_SIZE + sizeof(route), sizeof(type));
	if (is_known(known_senders, credentials, route.src.pid) != 1)
		return NULL;
	return new_message(addresses, &route, type, data + COOKIE_SIZE + HEADER_SIZE,
			   (Py_ssize_t)received->msg_len - COOKIE_SIZE - HEADER_SIZE);
}

/* The control messages as socket.recvmsg() returns them: a list of (level, type, data). */
static PyObject *ancillary_of(struct msghdr *header)
{
	PyObject *list = PyList_New(0);

	for (struct cmsghdr *one = CMSG_FIRSTHDR(header); list && one; one = CMSG_NXTHDR(header, one)) {
		PyObject *item;

		if (one->cmsg_len < CMSG_LEN(0))
			break;
		item = Py_BuildValue("(iiy#)", one->cmsg_level, one->cmsg_type, (const char *)CMSG_DATA(one),
				     (Py_ssize_t)(one->cmsg_len - CMSG_LEN(0)));
		if (!item || PyList_Append(list, item))
			Py_CLEAR(list);
		Py_XDECREF(item);
	}
	return list;
}

/* (datagram, ancillary, flags), for Receiver to check. */
static PyObject *unchecked(struct mmsghdr *received)
{
	PyObject *ancillary = ancillary_of(&received->msg_hdr);
	Py_ssize_t length = received->msg_len < LONG_DATAGRAM_MAX ? received->msg_len : LONG_DATAGRAM_MAX;

	if (!ancillary)
		return NULL;
	return Py_BuildValue("(y#Ni)", (const char *)received->msg_hdr.msg_iov->iov_base, length, ancillary,
			     received->msg_hdr.msg_flags);
}

static void close_rights(struct msghdr *header)
{
	for (struct cmsghdr *one = CMSG_FIRSTHDR(header); one; one = CMSG_NXTHDR(header, one)) {
		if (one->cmsg_level != SOL_SOCKET || one->cmsg_type != SCM_RIGHTS || one->cmsg_len < CMSG_LEN(0))
			continue;
		for (size_t at = 0; at + sizeof(int) <= one->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
			int fd;

			memcpy(&fd, CMSG_DATA(one) + at, sizeof(fd));
			close(fd);
		}
	}
}

static int call(PyObject *function, PyObject *argument)
{
	PyObject *done = PyObject_CallOneArg(function, argument);

	Py_XDECREF(done);
	return done ? 0 : -1;
}

/* Deliver the datagram if it is plain and nothing is kept in front of it; keep it otherwise. */
static int take_one(Addresses *addresses, PyObject *known_senders, PyObject *deliver, PyObject *keep, int *kept,
		    struct mmsghdr *received)
{
	PyObject *message = *kept ? NULL : plain_message(addresses, known_senders, received);
	int result;

	if (message) {
		result = call(deliver, message);
	} else {
		if (PyErr_Occurred())
			return -1;
		*kept = 1;
		message = unchecked(received);
		result = message ? call(keep, message) : -1;
	}
	Py_XDECREF(message);
	return result;
}

/*
 * receive_datagrams(addresses, fd, known_senders, deliver, keep) -> (whether there may be more, how many were lost)
 *
 * Raises OSError.  A datagram for which there is no memory is lost, and no other.
 */
PyObject *receive_datagrams(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	int fd, number, kept = 0, lost = 0;

	(void)module;
	if (count != 5 || !Py_IS_TYPE(args[0], &AddressesType) || !PyDict_Check(args[2])) {
		PyErr_SetString(PyExc_TypeError, "receive_datagrams(addresses, fd, known_senders, deliver, keep)");
		return NULL;
	}
	fd = (int)PyLong_AsLong(args[1]);
	if (PyErr_Occurred())
		return NULL;
	prepare_headers();
	number = recvmmsg(fd, headers, DATAGRAMS, MSG_DONTWAIT | MSG_CMSG_CLOEXEC, NULL);
	if (number < 0 && errno == EAGAIN)
		number = 0;
	if (number < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	for (int i = 0; i < number; i++) {
		if (!take_one((Addresses *)args[0], args[2], args[3], args[4], &kept, &headers[i]))
			continue;
		close_rights(&headers[i].msg_hdr);
		if (PyErr_ExceptionMatches(PyExc_MemoryError)) {
			PyErr_Clear();
			lost++;
			continue;
		}
		while (++i < number)
			close_rights(&headers[i].msg_hdr);
		return NULL;
	}
	return Py_BuildValue("(Ni)", PyBool_FromLong(number == DATAGRAMS), lost);
}
