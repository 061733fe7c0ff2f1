"""The settings of a Django project with django-rq."""

import os

SECRET_KEY = "not secret"
DEBUG = True
ALLOWED_HOSTS = ["testserver"]
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django_rq",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["DATABASE"]}}
ROOT_URLCONF = "django_addresses"
STATIC_URL = "/static/"
USE_TZ = True

RQ_QUEUES = {name: {"URL": os.environ["REDIS_URL"]} for name in ("high", "default", "low")}
RQ = {
    "WORKER_CLASS": "rqjobs.Worker",
    "JOB_CLASS": "rqjobs.Job",
    "QUEUE_CLASS": "django_queue.Queue",
}
